"""What scripts call of any model in transformers, held against transformers where it has it."""

import copy
from functools import partial

import pytest
import torch
import transformers
from torch.nn.functional import pad

import igpt_core
from igpt_core.errors import CheckpointError
from igpt_core.files import hub
from parity import (
    BARE,
    CAUSAL,
    CLASSES,
    CLASSIFIER,
    SHAPES,
    assert_equal_up_to_rounding,
    draw_tokens,
    one_thread,  # noqa: F401
    pair,
)

SHAPE = SHAPES["small"]
TOKENS = draw_tokens(SHAPE, 3, 7)


@pytest.fixture(params=CLASSES)
def both(request):
    return pair(SHAPE, request.param)


def body(model):
    return getattr(model, "transformer", model)


@pytest.mark.parametrize("module", ["block", "attn"])
def test_hooks_get_a_tuple_of_which_the_first_is_the_result(both, module):
    """Past bug: output[0] was the first row of the batch."""
    seen = []
    for model in both:
        hooked = body(model).h[1] if module == "block" else body(model).h[1].attn
        hooked.register_forward_hook(lambda _, __, output: seen.append(output))
        model(TOKENS)
    ours, theirs = seen
    assert isinstance(ours, tuple)
    assert isinstance(theirs, tuple)
    assert_equal_up_to_rounding(ours[0], theirs[0])


def test_a_hook_may_change_what_a_block_returns(both):
    found = []
    for model in both:
        body(model).h[0].register_forward_hook(lambda _, __, out: (2 * out[0], *out[1:]))
        found.append(model(TOKENS)[0])
    assert_equal_up_to_rounding(*found)


def test_weights_of_attention_are_in_the_tuple_where_they_are_asked_for():
    ours, _ = pair(SHAPE)
    seen = []
    ours.transformer.h[1].register_forward_hook(lambda _, __, output: seen.append(output[1]))
    asked = ours(TOKENS, output_attentions=True)
    ours(TOKENS)
    assert seen[0] is asked.attentions[1]
    assert seen[1] is None


def test_pixel_values_is_an_old_name_of_input_ids(both):
    model, _ = both
    with pytest.warns(FutureWarning, match="old name of input_ids"):
        found = model(pixel_values=TOKENS)[0]
    assert torch.equal(found, model(TOKENS)[0])
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="give only one"):
        model(TOKENS, pixel_values=TOKENS)


def test_attributes_that_callers_read_are_those_of_transformers(both):
    ours, theirs = both
    for name in ("base_model_prefix", "main_input_name", "supports_gradient_checkpointing"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.can_generate() == theirs.can_generate()
    assert ours.config_class is igpt_core.ImageGPTConfig
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.get_memory_footprint() == sum(p.nbytes for p in ours.parameters())
    assert (ours.base_model is ours) == (theirs.base_model is theirs)
    attention, expected = body(ours).h[1].attn, body(theirs).h[1].attn
    for name in ("embed_dim", "num_heads", "head_dim", "layer_idx"):
        assert getattr(attention, name) == getattr(expected, name)
    assert ours.get_position_embeddings() is body(ours).wpe


def test_embeddings_are_had_and_set():
    for name in CLASSES:
        model, theirs = pair(SHAPE, name)
        head = model.get_output_embeddings()
        assert (head is None) == (theirs.get_output_embeddings() is None)
        other = torch.nn.Linear(48, 16, bias=False)
        if head is None:
            with pytest.raises(ValueError, match="has no layer that gives colors' logits"):
                model.set_output_embeddings(other)
        else:
            model.set_output_embeddings(other)
            assert model.lm_head is other
            assert "lm_head.weight" in model.state_dict()


def test_a_model_of_a_configuration(both):
    ours, _ = both
    made = type(ours).from_config(ours.config, n_layer=1)
    assert (made.config.n_layer, ours.config.n_layer) == (1, 3)
    assert made(TOKENS)[0].shape == ours(TOKENS)[0].shape


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [9, 17, 24])
def test_colors_are_added_and_taken_away(tied, size, tmp_path):
    """The start token stays the last; transformers loads what is saved."""
    model, _ = pair(SHAPE, tie_word_embeddings=tied, dtype=torch.float32)
    before = copy.deepcopy(model)
    embedding = model.resize_token_embeddings(size)
    assert embedding is model.get_input_embeddings()
    assert model.config.vocab_size == embedding.num_embeddings == size
    assert model.config.start_token == size - 1
    kept = min(size, 17) - 1
    start = torch.tensor([[16]])
    tokens = torch.cat([start, TOKENS[:1] % kept], dim=1)
    moved = torch.cat([start * 0 + size - 1, TOKENS[:1] % kept], dim=1)
    expected = before(tokens).logits[..., :kept]
    torch.testing.assert_close(model(moved).logits[..., :kept], expected)
    assert model.generate(moved[:, :1])[:, 1:].max() < size - 1
    model.save_pretrained(tmp_path)
    theirs = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    torch.testing.assert_close(theirs(moved).logits, model(moved).logits, rtol=1e-4, atol=1e-4)
    assert model.resize_token_embeddings(pad_to_multiple_of=8).num_embeddings % 8 == 0
    with pytest.raises(ValueError, match="expected 2 tokens or more"):
        model.resize_token_embeddings(1)


def test_pruned_heads_add_nothing():
    model, _ = pair(SHAPE)
    mask = torch.ones(3, 4)
    mask[0, 1] = mask[2, 0] = mask[2, 3] = 0
    expected = model(TOKENS, head_mask=mask).logits
    model.prune_heads({0: [1], 2: {0, 3}})
    assert_equal_up_to_rounding(model(TOKENS).logits, expected)
    with pytest.raises(ValueError, match="layers below 3 and heads below 4, found layer 0 and h"):
        model.prune_heads({0: [4]})


def test_attentions_have_gradients_under_a_head_mask():
    model, _ = pair(SHAPE)
    mask = torch.full((3, 4), 0.5, dtype=torch.float64, requires_grad=True)
    output = model(TOKENS, head_mask=mask, output_attentions=True)
    output.attentions[1].retain_grad()
    output.logits.sum().backward()
    assert output.attentions[1].grad.abs().sum() > 0
    assert mask.grad.abs().min() > 0


def keep(kept, tensor):
    kept.append(tensor)
    return tensor


@pytest.mark.parametrize("options", [{}, {"every_n_layers": 2}])
def test_gradient_checkpointing_changes_no_gradient_and_keeps_fewer_tensors(both, options):
    model, _ = both
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    found = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable(**options)
        assert model.is_gradient_checkpointing == enabled
        torch.manual_seed(0)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(partial(keep, kept), lambda x: x):
            output = model(TOKENS)
        assert (output.past_key_values is None) == enabled
        output[0].sum().backward()
        found.append(([p.grad.clone() for p in model.parameters() if p.grad is not None], kept))
        model.zero_grad()
    for one, two in zip(found[0][0], found[1][0], strict=True):
        assert_equal_up_to_rounding(one, two)
    assert len(found[1][1]) < 0.8 * len(found[0][1])
    model.gradient_checkpointing_disable()
    assert model(TOKENS).past_key_values is not None
    with pytest.raises(TypeError, match="expected no offload"):
        model.gradient_checkpointing_enable(offload=True)


def test_input_gradients_reach_adapters_on_frozen_weights():
    model, _ = pair(SHAPE)
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert model(TOKENS).logits.requires_grad
    model.disable_input_require_grads()
    model.disable_input_require_grads()
    assert not model(TOKENS).logits.requires_grad


def test_init_weights_draws_as_a_new_model_does():
    torch.manual_seed(3)
    model = igpt_core.ImageGPTForCausalImageModeling(igpt_core.ImageGPTConfig(**SHAPE))
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(3)
    model.init_weights()
    found = model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_activations_and_dropouts_are_modules_that_may_be_changed():
    """Past bug: another activation was passed over, and attention kept its dropout."""
    found = []
    for model in pair(SHAPE):
        seen = []
        for block in model.transformer.h:
            block.mlp.act.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        model(TOKENS)
        assert len(seen) == 3
        for block in model.transformer.h:
            block.mlp.act = torch.nn.ReLU()
        found.append(model(TOKENS).logits)
    assert_equal_up_to_rounding(*found)
    model, _ = pair(SHAPE)
    before = model.generate(TOKENS[:, :1])
    model.transformer.h[0].mlp.act = torch.nn.ReLU()
    assert not model.generate(TOKENS[:, :1]).equal(before)
    model, _ = pair(SHAPE, attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0)
    for changed, varies in ((False, True), (True, False)):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train(not changed)
        assert torch.equal(model(TOKENS).logits, model(TOKENS).logits) != varies
        assert model.transformer.h[0].attn.attn_dropout.training != changed


def test_a_subclass_with_layers_of_its_own_loads_what_is_there(tmp_path):
    class Points(igpt_core.ImageGPTPreTrainedModel):
        def __init__(self, config):
            super().__init__()
            self.config = config
            self.transformer = igpt_core.ImageGPTModel(config)
            self.points = torch.nn.Linear(config.n_embd, 2)
            self.post_init()

        def forward(self, tokens):
            return self.points(self.transformer(tokens).last_hidden_state.mean(dim=1))

    model, _ = pair(SHAPE)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"points\.weight is not in it and is new"):
        made = Points.from_pretrained(tmp_path)
    assert made(TOKENS).shape == (3, 2)
    state = made.transformer.state_dict()
    assert all(torch.equal(state[n], w) for n, w in model.transformer.state_dict().items())
    made.save_pretrained(tmp_path)
    again = Points.from_pretrained(tmp_path)
    assert torch.equal(again(TOKENS), made(TOKENS))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_models_are_compiled_whole_with_their_caches_and_gradients(both):
    """By the steps of torch.compile before code is made, which hold no writing into views."""
    model, _ = both
    other = draw_tokens(SHAPE, 3, 7, seed=4)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for made in (compiled, model):
        model.zero_grad()
        made(other)[0].square().mean().backward()
        with torch.no_grad():
            first = made(other[:, :5])
            second = made(other[:, 5:], past_key_values=first.past_key_values)
        found.append([second[0], *(weight.grad for weight in model.parameters())])
    for one, two in zip(*found, strict=True):
        assert_equal_up_to_rounding(one, two)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_graphs_are_for_any_mask(both):
    """Past bug: one that was made with a mask of ones had none."""
    model, _ = both
    model.config.use_cache, model.config.return_dict = False, False
    given = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    other = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    other["attention_mask"][1, :3] = 0
    traced = torch.jit.trace(model, example_kwarg_inputs=given)
    exported = torch.export.export(model, (), kwargs=given).module()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for made in (traced, exported, compiled):
        for inputs in (given, other):
            assert_equal_up_to_rounding(made(**inputs)[0], model(**inputs)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_models_are_traced_and_compiled(both):
    model, _ = both
    model.config.use_cache, model.config.return_dict = False, False
    traced = torch.jit.trace(model, (TOKENS,))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    other = draw_tokens(SHAPE, 3, 7, seed=4)
    for made in (traced, compiled):
        assert_equal_up_to_rounding(made(other)[0], model(other)[0])


def test_layers_of_a_subclass_are_as_its_constructor_makes_them(tmp_path):
    """Its buffers are saved too, and its own arguments are handed over."""

    class Scored(igpt_core.ImageGPTPreTrainedModel):
        def __init__(self, config, n_out=2):
            super().__init__(config)
            self.transformer = igpt_core.ImageGPTModel(config)
            self.norm = torch.nn.BatchNorm1d(config.n_embd)
            self.score = torch.nn.Sequential(torch.nn.Linear(config.n_embd, n_out))
            self.scale = torch.nn.Parameter(torch.full((3,), 3.0))

        def forward(self, tokens):
            return self.score(self.norm(self.transformer(tokens).last_hidden_state.mean(dim=1)))

    model, _ = pair(SHAPE, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="is new: train it"):
        made = Scored.from_pretrained(tmp_path, n_out=5, attn_pdrop=0.5)
    assert made.config.attn_pdrop == 0.5
    assert made.norm.weight.equal(torch.ones(48))
    assert made.scale.equal(torch.full((3,), 3.0))
    assert made(TOKENS).shape == (3, 5)
    made.train()(TOKENS)  # which changes what the norm remembers
    made.save_pretrained(tmp_path)
    again = Scored.from_pretrained(tmp_path, n_out=5)
    assert again.norm.num_batches_tracked == 1
    assert torch.equal(again(TOKENS), made.eval()(TOKENS))
    with pytest.raises(igpt_core.CheckpointError, match="all of the model's tensors in state_dict"):
        made.save_pretrained(tmp_path, state_dict={"scale": made.scale})


def test_what_a_constructor_makes_beside_weights_stays(tmp_path):
    """Ties of a caller's class, buffers that are in no file, plain tensors, states of modules."""

    class Tied(igpt_core.ImageGPTPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.transformer = igpt_core.ImageGPTModel(config)
            self.first, self.second = (torch.nn.Linear(48, 48) for _ in range(2))
            self.second.weight = self.first.weight
            self.register_buffer("places", torch.arange(3.0), persistent=False)
            self.plain = torch.arange(3.0)

        def get_extra_state(self):
            return {"seen": 3}

        def set_extra_state(self, state):
            """Takes any."""

    model, _ = pair(SHAPE, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="is new: train it"):
        made = Tied.from_pretrained(tmp_path)
    assert made.first.weight is made.second.weight
    assert made.places.equal(torch.arange(3.0))
    assert made.plain.equal(torch.arange(3.0))
    made.save_pretrained(tmp_path)
    again = Tied.from_pretrained(tmp_path)
    assert again.first.weight is again.second.weight
    assert again.first.weight.equal(made.first.weight)


def test_weights_of_another_shape_are_as_the_constructor_makes_them(tmp_path):
    model, _ = pair(SHAPE, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="is of shape"):
        made = type(model).from_pretrained(tmp_path, n_inner=64, ignore_mismatched_sizes=True)
    assert not made.transformer.h[0].mlp.c_fc.bias.any()
    with pytest.warns(UserWarning, match="is of shape"):
        type(model).from_pretrained(tmp_path, n_embd=12, ignore_mismatched_sizes=True)


def test_wrapped_blocks_are_checkpointed_too():
    """As those that FSDP or torch.compile put in the place of blocks."""

    class Wrapper(torch.nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block, self.calls = block, 0

        def forward(self, *arguments):
            self.calls += 1
            return self.block(*arguments)

    model, _ = pair(SHAPE)
    model.train().gradient_checkpointing_enable(every_n_layers=2)
    for layer, block in enumerate(model.transformer.h):
        model.transformer.h[layer] = Wrapper(block)
    model(TOKENS).logits.square().mean().backward()
    assert [block.calls for block in model.transformer.h] == [2, 1, 2]


def test_dropout_of_attention_is_the_module_that_is_there():
    """It is called on the weights where it is another than torch's or has a hook, as in
    transformers without a fused kernel; with that, hooks on attention get the weights too."""
    ours, theirs = pair(SHAPE, attn_implementation="eager")
    found = []
    for model in (ours, theirs):
        seen, attention = [], model.transformer.h[1].attn
        attention.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output[1]))
        model(TOKENS)
        attention.attn_dropout.register_forward_hook(lambda _, __, weights: weights * 0.5)
        plain = model(TOKENS).logits
        attention.attn_dropout = torch.nn.Softmax(dim=-1)
        found.append([*seen, plain, model(TOKENS).logits])
    for one, two in zip(*found, strict=True):
        assert_equal_up_to_rounding(one, two)
    ours.set_attn_implementation("sdpa")
    assert_equal_up_to_rounding(ours(TOKENS).logits, found[0][-1])


def test_parts_are_called_by_hand(both):
    states = torch.randn(3, 7, 48, generator=torch.Generator().manual_seed(1)).double()
    for name in ("attn", "mlp"):
        mine, other = (getattr(body(model).h[0], name)(states) for model in both)
        assert_equal_up_to_rounding(*(o[0] if name == "attn" else o for o in (mine, other)))
    mine, other = (body(model).h[0](hidden_states=states) for model in both)
    assert_equal_up_to_rounding(mine[0], other[0])


@pytest.mark.parametrize("name", CLASSES)
def test_a_batch_of_no_rows(name):
    model, _ = pair(SHAPE, name)
    assert model(TOKENS[:0])[0].shape[0] == 0
    if name == CAUSAL:
        assert model.generate(TOKENS[:0]).shape == (0, 17)


def test_a_model_is_pushed_to_the_hub(monkeypatch, tmp_path):
    """By a stand-in for the Hub, which keeps what it is given."""
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, private=None, exist_ok=False):
            calls.append(("create", repo_id, private, exist_ok))
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, **options):
            names = sorted(path.name for path in folder_path.iterdir())
            calls.append(("upload", repo_id, names, options["commit_message"]))
            return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    model, _ = pair(SHAPE, CLASSIFIER)
    found = model.push_to_hub("birds", private=True, token="secret", commit_message="mine")
    assert found == "https://hub/me/birds/commit/1"
    files = ["config.json", "model.safetensors"]
    upload = ("upload", "me/birds", files, "mine")
    assert calls == [("token", "secret"), ("create", "birds", True, True), upload]
    calls.clear()
    model.save_pretrained(tmp_path / "cats", push_to_hub=True)
    assert calls[1:] == [
        ("create", "cats", None, True),
        ("upload", "me/cats", files, "Upload of an ImageGPT model"),
    ]

    def refused(*_, **__):
        raise OSError(13, "token secret is not good")

    monkeypatch.setattr(Api, "create_repo", refused)
    with pytest.raises(CheckpointError) as error:
        hub.push_folder(tmp_path, "me/cats")
    assert "me/cats" in str(error.value)


def test_models_of_every_class_begin_with_the_start_token_and_padding_alike():
    """Of a padded batch the real positions are those without padding, as in transformers."""
    ours, theirs = pair(SHAPE, BARE)
    mask = torch.ones_like(TOKENS)
    mask[0, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = ours(TOKENS, attention_mask=mask, position_ids=positions).last_hidden_state
    expected = theirs(TOKENS, attention_mask=mask, position_ids=positions).last_hidden_state
    assert_equal_up_to_rounding(found[0, 3:], expected[0, 3:])
    alone = ours(TOKENS[:1, 3:]).last_hidden_state[0]
    assert_equal_up_to_rounding(found[0, 3:], alone)
    assert pad(TOKENS, (1, 0)).shape[1] == 8
