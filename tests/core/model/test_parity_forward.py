"""What `forward` returns against transformers, class by class and argument by argument.

Tolerances: parity.py. Head masks and cross-attention, which transformers lacks or has broken:
test_cross_attention.py. Caches given back: test_parity_cache.py.
"""

import pytest
import torch

from igpt_core import ImageGPTConfig, ImageGPTModel
from igpt_core.model.layers import ACTIVATIONS
from parity import (
    BARE,
    CAUSAL,
    CLASSES,
    CLASSIFIER,
    SHAPES,
    assert_equal_up_to_rounding,
    assert_same_gradients,
    assert_same_part,
    draw_tokens,
    one_thread,  # noqa: F401
    pair,
)

ROWS = 3


@pytest.fixture(params=list(SHAPES))
def shape(request):
    return SHAPES[request.param]


def mask(shape, *, front=(0, 0, 0), behind=(0, 0, 0)):
    """(ROWS, n_positions) with so many zeros in front and behind in each row."""
    found = torch.ones(ROWS, shape["n_positions"], dtype=torch.int64)
    for row, (first, last) in enumerate(zip(front, behind, strict=True)):
        found[row, :first] = 0
        found[row, shape["n_positions"] - last :] = 0
    return found


def embeddings(shape):
    size = (ROWS, 5, shape["n_embd"])
    return torch.randn(size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def backwards(shape):
    return torch.arange(shape["n_positions"]).flip(0)[None]


# From a shape to the arguments; where there are no embeddings, tokens are given too.
ARGUMENTS = {
    "tokens alone": lambda shape: {},
    "embeddings": lambda shape: {"inputs_embeds": embeddings(shape)},
    "positions": lambda shape: {"position_ids": backwards(shape)},
    "positions of each row": lambda shape: {
        "position_ids": torch.cat([backwards(shape) // (row + 1) for row in range(ROWS)])
    },
    "token types": lambda shape: {
        "token_type_ids": draw_tokens(shape, ROWS, shape["n_positions"], seed=5)
    },
    "mask of ones": lambda shape: {"attention_mask": mask(shape)},
    "padding behind": lambda shape: {"attention_mask": mask(shape, behind=(0, 3, 5))},
    "boolean mask": lambda shape: {"attention_mask": mask(shape, behind=(1, 0, 2)).bool()},
    "gaps": lambda shape: {"attention_mask": (draw_tokens(shape, ROWS, shape["n_positions"]) > 1)},
    "all": lambda shape: {
        "attention_mask": mask(shape, behind=(0, 2, 1)),
        "position_ids": backwards(shape),
        "token_type_ids": draw_tokens(shape, ROWS, shape["n_positions"], seed=5),
        "output_attentions": True,
        "output_hidden_states": True,
    },
    "attentions": lambda shape: {"output_attentions": True},
    "hidden states": lambda shape: {"output_hidden_states": True},
    "no cache": lambda shape: {"use_cache": False},
}


def given(name, shape, arguments):
    """The arguments with tokens, and with labels where the class has them."""
    length = shape["n_positions"]
    if "inputs_embeds" in arguments:
        length = arguments["inputs_embeds"].shape[1]
    else:
        arguments["input_ids"] = draw_tokens(shape, ROWS, length)
    if name == CAUSAL:
        arguments["labels"] = draw_tokens(shape, ROWS, length, seed=2)
        arguments["labels"][0, 2:4] = -100
    elif name == CLASSIFIER:
        arguments["labels"] = torch.tensor([2, 0, 1])
    return arguments


def scalar(output):
    """A number that depends on all that is returned."""
    parts = [output.loss] if "loss" in output else [output.last_hidden_state.square().mean()]
    for weights in output.get("attentions") or ():
        parts.append(weights.square().sum())
    return sum(parts)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_every_field_and_every_gradient(shape, name, arguments):
    arguments = given(name, shape, ARGUMENTS[arguments](shape))
    ours, theirs = pair(shape, name, num_labels=3)
    mine, other = ours(**arguments), theirs(**arguments)
    assert list(mine) == list(other.keys())
    for field in mine:
        assert_same_part(mine[field], other[field])
    scalar(mine).backward()
    scalar(other).backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("whole", [False, True])
def test_padding_in_front(shape, name, whole):
    """Its queries see padding alone; transformers' numbers there enter a classifier's mean."""
    padding = (0, 2, shape["n_positions"] if whole else 4)
    arguments = {"attention_mask": mask(shape, front=padding), "output_hidden_states": True}
    arguments = given(name, shape, arguments)
    ours, theirs = pair(shape, name, num_labels=3)
    mine, other = ours(**arguments), theirs(**arguments)
    assert_same_part(mine.hidden_states, other.hidden_states)
    scalar(mine).backward()
    scalar(other).backward()
    assert_same_gradients(ours, theirs)


def test_what_is_padding_changes_nothing(shape):
    ours, _ = pair(shape)
    tokens = draw_tokens(shape, ROWS, shape["n_positions"])
    seen = mask(shape, front=(3, 1, 2))
    seen[:, 5] = 0
    changed = torch.where(seen == 1, tokens, (tokens + 1) % (shape["vocab_size"] - 1))
    one, two = (ours(each, attention_mask=seen).logits for each in (tokens, changed))
    assert_equal_up_to_rounding(one[seen == 1], two[seen == 1])


@pytest.mark.parametrize("name", CLASSES)
def test_tuples_have_the_order_of_transformers(name):
    shape = SHAPES["small"]
    ours, theirs = pair(shape, name, num_labels=3)
    arguments = {"output_attentions": True, "output_hidden_states": True}
    arguments = given(name, shape, arguments)
    output = ours(**arguments)
    mine = ours(**arguments, return_dict=False)
    other = theirs(**arguments, return_dict=False)
    assert isinstance(mine, tuple)
    assert len(mine) == len(other) == len(output) == len(output.to_tuple())
    for one, two, three in zip(mine, other, output[:], strict=True):
        assert_same_part(one, two)
        assert_same_part(three, two)


def test_fields_by_name_key_and_position():
    shape = SHAPES["small"]
    ours, _ = pair(shape)
    output = ours(draw_tokens(shape, 2, 4), output_hidden_states=True)
    assert list(output) == list(output.keys()) == ["logits", "past_key_values", "hidden_states"]
    assert output["logits"] is output.logits is output[0] is dict(output)["logits"]
    assert output.loss is None
    assert "loss" not in output
    assert dict(output.items()).keys() == dict(**output).keys()
    with pytest.raises(KeyError):
        output["loss"]


def test_what_the_configuration_says():
    ours, theirs = pair(SHAPES["small"], BARE)
    tokens = draw_tokens(SHAPES["small"], 2, 4)
    for model in (ours, theirs):
        model.config.output_hidden_states = True
        model.config.output_attentions = True
        model.config.return_dict = False
    assert [len(part) for part in ours(tokens)] == [len(part) for part in theirs(tokens)]
    asked = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
    assert list(ours(tokens, **asked)) == ["last_hidden_state", "past_key_values"]
    ours.config.use_cache = False
    assert list(ours(tokens, **asked)) == ["last_hidden_state"]


def test_positions_of_arguments():
    """All but the first are given by keyword above; here by position."""
    shape = SHAPES["odd"]
    tokens, types = (draw_tokens(shape, ROWS, 11, seed=seed) for seed in (1, 5))
    seen, heads = mask(shape, behind=(0, 2, 1)), torch.tensor([0.5, 0.0, 2.0])
    labels = {CAUSAL: tokens, CLASSIFIER: torch.tensor([2, 0, 1])}
    for name in CLASSES:
        ours, _ = pair(shape, name, num_labels=3)
        first = (tokens, None, seen, types, backwards(shape), heads, None)
        encoder = () if name == CLASSIFIER else (None, None)
        by_place = ours(
            *first, *encoder, *([labels[name]] if name in labels else []), False, True, True, True
        )
        by_name = ours(
            tokens,
            attention_mask=seen,
            token_type_ids=types,
            position_ids=backwards(shape),
            head_mask=heads,
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
            **({"labels": labels[name]} if name in labels else {}),
        )
        assert list(by_place) == list(by_name)
        for field in by_place:
            assert_same_part(by_place[field], by_name[field])


def test_float32_logits(shape):
    ours, theirs = pair(shape, dtype=torch.float32)
    for length in (1, 2, shape["n_positions"]):
        tokens = draw_tokens(shape, ROWS, length)
        tokens[:, 0] = ours.config.start_token
        with torch.no_grad():
            mine, other = ours(tokens).logits, theirs(tokens).logits
        assert mine.shape == (ROWS, length, shape["vocab_size"] - 1)
        assert other.std() > 0.1  # far above the tolerance
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("weights", [False, True])
def test_reordered_attention_is_the_same_function(shape, weights):
    """With reorder_and_upcast_attn transformers computes scores in float32 whatever the dtype."""
    ours, theirs = pair(shape, dtype=torch.float32, reorder_and_upcast_attn=True)
    tokens = draw_tokens(shape, ROWS, shape["n_positions"])
    with torch.no_grad():
        mine, other = (model(tokens, output_attentions=weights) for model in (ours, theirs))
    torch.testing.assert_close(mine.logits, other.logits, rtol=0, atol=1e-4)
    for one, two in zip(mine.attentions or (), other.attentions or (), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    shape = SHAPES["small"]
    ours, theirs = pair(shape, activation_function=activation)
    tokens = draw_tokens(shape, ROWS, 9)
    assert_equal_up_to_rounding(ours(tokens).logits, theirs(tokens).logits)


@pytest.mark.parametrize("weights", [False, True])
def test_dropout_is_where_transformers_has_it(shape, weights):
    """At probability one what is dropped is exactly zero, so training mode can be compared."""
    tokens = draw_tokens(shape, 2, shape["n_positions"])
    off = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    logits = []
    for name in (None, *off):
        ours, theirs = pair(shape, **{**off, **({name: 1.0} if name else {})})
        mine = ours.train()(tokens, output_attentions=weights).logits
        assert_equal_up_to_rounding(mine, theirs.train()(tokens).logits)
        logits.append(mine)
    for dropped in logits[1:]:
        assert (dropped - logits[0]).abs().max() > 0.01


LABELS = {
    "one class": (1, [0.5, -1.0, 2.0]),
    "one class, a column": (1, [[0.5], [-1.0], [2.0]]),
    "classes": (3, [2, 0, 1]),
    "several classes a row": (3, [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]),
    "regression": (3, [[0.1, 0.2, 0.3], [-1.0, 1.0, 0.0], [0.0, 3.0, 1.0]]),
}


@pytest.mark.parametrize("labels", LABELS)
def test_losses_of_the_classifier(labels):
    num_labels, values = LABELS[labels]
    fields = {"problem_type": "regression"} if labels == "regression" else {}
    ours, theirs = pair(SHAPES["small"], CLASSIFIER, num_labels=num_labels, **fields)
    tokens = draw_tokens(SHAPES["small"], 3, 16)
    values = torch.tensor(values)
    values = values.double() if values.is_floating_point() else values
    mine, other = ours(tokens, labels=values).loss, theirs(tokens, labels=values).loss
    assert_equal_up_to_rounding(mine, other)
    assert ours.config.problem_type == fields.get("problem_type")  # other labels may follow


def test_wrong_arguments_are_refused():
    ours, _ = pair(SHAPES["small"])
    tokens = draw_tokens(SHAPES["small"], 1, 17)
    few = tokens[:, :2]
    refused = [
        ((tokens,), {}, "16 positions, found 17"),
        ((), {}, "either input_ids or inputs_embeds"),
        ((few,), {"inputs_embeds": torch.zeros(1, 2, 48)}, "either input_ids or inputs_embeds"),
        ((few[0],), {}, r"expected input_ids \(B, T\)"),
        ((few,), {"attention_mask": torch.ones(1, 3)}, r"\(1, 2\), found \(1, 3\)"),
        ((few,), {"head_mask": torch.ones(5)}, r"\(4,\) or \(3, 4\), found \(5,\)"),
        ((few,), {"encoder_hidden_states": torch.zeros(1, 2, 48)}, "add_cross_attention=True"),
    ]
    for positional, arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            ours(*positional, **arguments)
    with pytest.raises(ValueError, match=r"activation_function must be one of \['quick_gelu', "):
        ImageGPTModel(ImageGPTConfig(n_layer=1, activation_function="swiglu"))
    classifier, _ = pair(SHAPES["small"], CLASSIFIER, problem_type="ranking")
    with pytest.raises(ValueError, match="unknown problem_type 'ranking'"):
        classifier(few, labels=torch.tensor([0]))
