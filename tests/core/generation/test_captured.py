"""Passes that a GPU captures and replays: the same tokens, by one capture for all positions.

On a CPU the operations of a pass are traced in place of a capture: like a CUDA graph a trace holds
every number of the host as it was, and the tensors by where they lie.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from igpt_core import ImageGPTConfig, NeighborTables, Pinned, SamplingConfig, complete
from igpt_core.generation import captured, completion, decoding, noise, passes, places
from igpt_core.generation.captured import CapturedPass, Pass, cuda_graph
from igpt_core.generation.completion import complete_prompts
from igpt_core.generation.host_progress import HostProgress
from igpt_core.generation.passes import decode_window
from igpt_core.generation.trial import try_fast_ways
from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.model import kv_cache, self_check, window_kernel
from igpt_core.model.attention_inputs import Prefix, Scales
from igpt_core.model.kv_cache import KVCache
from igpt_core.model.self_check import left_aside, window_kernel_works
from models import make_model, prefill

N_POSITIONS = 144
SAMPLING = SamplingConfig(top_k=20)


def model_of(n_positions: int = N_POSITIONS) -> ImageGPTForCausalImageModeling:
    config = ImageGPTConfig(vocab_size=33, n_positions=n_positions, n_embd=32, n_layer=2, n_head=2)
    return make_model(config, std=0.3)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was left aside before."""
    monkeypatch.setattr(self_check, "_left_aside", [])


def colors(rows: int, n: int) -> Tensor:
    return torch.randint(0, 32, (rows, n), generator=torch.Generator().manual_seed(n))


def by_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    starts: Tensor,
    scale: float,
    prefix: Prefix | None = None,
    scales: Scales | None = None,
) -> Tensor:
    """What the kernel computes, in torch's operations, which can be traced."""
    if scales is not None:
        k, v = k * scales.k, v * scales.v
    if prefix is not None:
        first_k, first_v, factors = prefix
        if factors is not None:
            first_k, first_v = first_k * factors.k, first_v * factors.v
        k, v = Prefix(first_k, first_v).before(k, v)
    positions = starts[:, None] + torch.arange(q.shape[2])
    seen = torch.arange(k.shape[2]) <= positions[:, None, :, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are not packed, and caches are read by the start of each row's window."""
    monkeypatch.setattr(completion, "prepacked", lambda model: model)
    monkeypatch.setattr(decoding, "takes_starts", lambda *_, **__: True)
    monkeypatch.setattr(kv_cache, "reads_by_channel", lambda *_: False)


@pytest.fixture
def captures(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Tensor]]:
    """The captures that were made; their passes are replayed, and attend as torch does."""
    made: list[Callable[[], Tensor]] = []

    def traced(run: Pass, tokens: Tensor, positions: Tensor) -> Callable[[], Tensor]:
        graph = make_fx(run)(tokens, positions)
        made.append(lambda: graph(tokens, positions))
        return made[-1]

    monkeypatch.setattr(window_kernel, "attend_windows", by_torch)
    monkeypatch.setattr(passes, "captures_pay", lambda *_: True)
    monkeypatch.setattr(passes, "CapturedPass", partial(CapturedPass, capture=traced))
    return made


TABLES = NeighborTables.counted(
    colors(50, N_POSITIONS), torch.ones(50, N_POSITIONS, dtype=torch.bool), n_colors=32
)
CASES = {
    "one pixel": {},
    "windows": {"window": 4},
    "tables": {"window": 8, "draft": TABLES},
    "samples": {"n_samples": 3},
    "samples in windows": {"n_samples": 2, "window": 4},
    "known pixels": {"window": 4, "pinned": Pinned(colors(3, 144), colors(3, 144) % 3 == 0)},
}


def drawn(
    options: dict[str, object],
    n_given: int = 70,
    rows: int = 3,
    model: ImageGPTForCausalImageModeling | None = None,
) -> Tensor:
    return complete(
        model or model_of(),
        colors(rows, n_given),
        n_positions=N_POSITIONS,
        seeds=torch.arange(rows),
        sampling=SAMPLING,
        **options,
    )


def test_captures_are_asked_for_the_passes_there_will_be(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past bug: they were asked before a sequence had begun, and never paid; nor in the trial."""
    asked = []

    def pays(device: torch.device, n_rows: int, n_passes: int) -> bool:
        asked.append((n_rows, n_passes))
        return False

    monkeypatch.setattr(window_kernel, "attend_windows", by_torch)
    monkeypatch.setattr(passes, "captures_pay", pays)
    drawn({}, n_given=20)
    drawn({"n_samples": 2, "window": 4}, n_given=20)
    try_fast_ways(torch.device("cpu"), torch.float32, 8)
    assert asked == [(3, 123), (6, 31), (4, 71)]
    assert captured.captures_pay(torch.device("cuda"), *asked[0])
    assert captured.captures_pay(torch.device("cuda"), *asked[2])


@pytest.mark.parametrize("name", CASES)
def test_one_capture_serves_all_positions(name: str, request: pytest.FixtureRequest) -> None:
    expected = drawn(CASES[name])
    made = request.getfixturevalue("captures")
    assert torch.equal(drawn(CASES[name]), expected)
    assert len(made) == 1


def test_one_capture_serves_prompts_of_any_length(request: pytest.FixtureRequest) -> None:
    def found() -> Tensor:
        return complete_prompts(
            model_of(),
            colors(4, N_POSITIONS),
            torch.tensor([3, 120, 70, 144]),
            seeds=torch.arange(4),
            sampling=SAMPLING,
            n_samples=2,
            window=4,
        )

    expected = found()
    made = request.getfixturevalue("captures")
    assert torch.equal(found(), expected)
    assert len(made) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton does not interpret here")
@pytest.mark.parametrize("name", ["one pixel", "tables", "samples in windows"])
def test_tokens_drawn_by_the_kernel_are_those_of_the_cpu(
    name: str, request: pytest.FixtureRequest
) -> None:
    expected = drawn(CASES[name], n_given=124, rows=2)
    request.getfixturevalue("as_on_a_gpu")
    assert torch.equal(drawn(CASES[name], n_given=124, rows=2), expected)


@pytest.mark.parametrize("window", [1, 4])
def test_samples_share_their_prompt_in_a_capture(
    window: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole splits of the kernel, of 256 positions each."""
    caches: list[KVCache] = []
    new_cache = places.new_cache

    def kept(*arguments: object, **options: object) -> KVCache:
        caches.append(new_cache(*arguments, **options))
        return caches[-1]

    def found(n_samples: int) -> Tensor:
        return complete(
            model_of(324),
            colors(2, 300),
            n_positions=324,
            seeds=torch.arange(2),
            sampling=SAMPLING,
            n_samples=n_samples,
            window=window,
        )

    expected = found(3)
    made = request.getfixturevalue("captures")
    monkeypatch.setattr(places, "new_cache", kept)
    assert torch.equal(found(3), expected)
    assert [cache.n_shared for cache in caches] == [256]
    assert len(made) == 1
    assert torch.equal(found(1), expected[:, :1])


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("n_given", [0, 300])
@pytest.mark.parametrize("at_once", [None, 2])
def test_a_cache_of_8_bits_holds_keys_and_values_that_are_rounded_to_them(
    window: int,
    n_given: int,
    at_once: int | None,
    captures: list[Callable[[], Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With prompts that samples share, and rows that take the place of others: the tokens are those
    of a cache of float32 that holds the same numbers. They are so coarse that tokens differ from
    those of an exact cache."""

    def coarse(x: Tensor) -> tuple[Tensor, Tensor]:
        scales = x.abs().amax(dim=-1, keepdim=True) / 2
        return (x / scales).round().to(torch.int8), scales

    def found(**options: object) -> Tensor:
        return complete(
            model_of(324),
            colors(5, n_given),
            n_positions=324 if n_given else 100,
            seeds=torch.arange(5),
            sampling=SAMPLING,
            n_samples=2,
            window=window,
            at_once=at_once,
            **options,
        )

    monkeypatch.setattr(kv_cache, "to_eight_bits", coarse)
    exact = found()
    eight_bits = found(kv_cache_dtype=torch.int8)

    def rounded(self: KVCache, layer: int, *parts: Tensor) -> tuple[Tensor, ...]:
        if self.capacity < 64 or self.capacity % 64:  # of a prompt alone
            return parts
        return tuple(codes * scales for codes, scales in map(coarse, parts))

    monkeypatch.setattr(KVCache, "_as_kept", rounded)
    assert torch.equal(eight_bits, found())
    assert not torch.equal(eight_bits, exact)


@pytest.mark.parametrize("at_once", [0, noise._AT_ONCE])
@pytest.mark.parametrize("name", CASES)
def test_the_host_may_learn_late_how_far_sequences_are(
    name: str, at_once: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the noise is made for all pixels or again and again."""

    def found() -> tuple[Tensor, list[int]]:
        passes: list[int] = []
        return drawn(CASES[name] | {"passes": passes}), passes

    expected, passes_then = found()
    request.getfixturevalue("captures")
    monkeypatch.setattr(noise, "_AT_ONCE", at_once)
    read, real = [], HostProgress.read

    def late(progress: HostProgress, decided: Tensor) -> None:
        real(progress, decided)
        read.append(int((decided.numpy() - progress.decided).max()))
        assert read[-1] <= progress.slack

    monkeypatch.setattr(HostProgress, "read", late)
    tokens, passes = found()
    assert torch.equal(tokens, expected)
    assert passes == passes_then
    if "window" in CASES[name]:
        assert max(read[1:]) > 0
    else:
        assert read == []  # of one pixel at a time the host always knows


@torch.inference_mode()
def test_a_pass_with_a_number_of_the_host_in_it_is_left_aside(
    captures: list[Callable[[], Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    """Its capture is right where it was made, and wrong at the next position."""
    model, at = model_of(), []

    def run(tokens: Tensor, positions: Tensor) -> Tensor:
        return decode_window(model, tokens, positions, cache, span=cache.capacity) + at[-1]

    _, cache = prefill(model, colors(2, 5), n_samples=1, capacity=N_POSITIONS)
    tokens = colors(2, 1)
    one_pass = passes.CapturedPass(run)
    for position in (6, 7, 8, 9):
        at.append(position)
        positions = torch.full((2, 1), position)
        assert torch.equal(one_pass(tokens, positions), run(tokens, positions))
    assert len(captures) == 1
    assert said(caplog) == ["a captured pass is left aside on cpu: its logits are others"]
    assert left_aside() == ["a captured pass: its logits are others"]


def test_hooks_are_called_at_each_pass(captures: list[Callable[[], Tensor]]) -> None:
    model, called = model_of(), []
    model.transformer.h[1].register_forward_hook(lambda *_: called.append(None))
    model_drawn = drawn({}, n_given=130, model=model)
    assert len(called) == 1 + N_POSITIONS - 131  # the prompts, and a pass for each pixel but one
    assert captures == []
    assert torch.equal(model_drawn, drawn({}, n_given=130))
    assert len(captures) == 1


def test_what_cannot_be_captured_is_run_as_it_is(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = drawn({}, n_given=130)

    def refused(*_: object) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(window_kernel, "attend_windows", by_torch)
    monkeypatch.setattr(passes, "captures_pay", lambda *_: True)
    monkeypatch.setattr(passes, "CapturedPass", partial(CapturedPass, capture=refused))
    assert torch.equal(drawn({}, n_given=130), expected)
    assert torch.equal(drawn({}, n_given=130), expected)
    why = "RuntimeError: operation not permitted when stream is capturing"
    assert said(caplog) == [f"a captured pass is left aside on cpu: {why}"]


@pytest.mark.parametrize(
    ("device", "n_rows", "n_passes", "pays"),
    [("cuda", 384, 64, True), ("cuda", 385, 64, False), ("cuda", 1, 63, False), ("cpu", 1, 64, 0)],
)
def test_captures_are_for_many_passes_over_few_rows_of_a_gpu(
    device: str, n_rows: int, n_passes: int, pays: bool
) -> None:
    assert captured.captures_pay(torch.device(device), n_rows, n_passes) == bool(pays)


@torch.inference_mode()
def test_a_capture_without_room_is_tried_again_with_the_next_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> Callable[[], Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    one_pass = CapturedPass(lambda tokens, positions: tokens + positions, full)
    for _ in range(3):
        assert one_pass(torch.ones(2, 1), torch.ones(2, 1)).tolist() == [[2], [2]]
    assert said(caplog) == left_aside() == []


def test_logits_behind_a_wrong_guess_may_be_nan(caplog: pytest.LogCaptureFixture) -> None:
    def run(tokens: Tensor, positions: Tensor) -> Tensor:
        return tokens / (positions - positions)

    one_pass = CapturedPass(run, lambda run, *tensors: lambda: run(*tensors))
    for _ in range(3):
        assert one_pass(torch.zeros(2, 1), torch.ones(2, 1)).isnan().all()
    assert said(caplog) == left_aside() == []


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["one pixel", "tables", "samples in windows"])
def test_a_gpu_captures_and_replays(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    window_kernel_works.cache_clear()
    model, made = model_of().to("cuda", dtype), []

    def capture(*arguments: object) -> Callable[[], Tensor]:
        made.append(cuda_graph(*arguments))
        return made[-1]

    def found(captures: bool) -> tuple[Tensor, list[int]]:
        passes_taken: list[int] = []
        options = dict(CASES[name])
        if "draft" in options:
            options["draft"] = TABLES.to("cuda")
        monkeypatch.setattr(passes, "captures_pay", lambda *_: captures)
        drawn = complete(
            model,
            colors(3, 70).cuda(),
            n_positions=N_POSITIONS,
            seeds=torch.arange(3, device="cuda"),
            sampling=SAMPLING,
            passes=passes_taken,
            **options,
        )
        return drawn, passes_taken

    monkeypatch.setattr(passes, "CapturedPass", partial(CapturedPass, capture=capture))
    replayed, passes_then = found(True)
    assert len(made) == 1
    assert left_aside() == []
    tokens, passes_taken = found(False)
    assert torch.equal(tokens, replayed)
    assert passes_taken == passes_then


@needs_gpu
def test_a_gpu_goes_on_after_a_capture_that_failed() -> None:
    def waits(tokens: Tensor, positions: Tensor) -> Tensor:
        return tokens + positions.sum().item()

    stream = torch.cuda.current_stream()
    one_pass, ones = CapturedPass(waits), torch.ones(2, 1, device="cuda")
    for _ in range(3):
        assert one_pass(ones, ones).tolist() == [[3], [3]]
    assert len(left_aside()) == 1
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    assert (ones @ ones.T).isfinite().all()
