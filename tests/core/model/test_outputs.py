"""What models return: a dict, a tuple and attributes, whoever rebuilds it."""

import copy
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

import igpt_core
from parity import CLASSES, SHAPES, draw_tokens, one_thread, pair  # noqa: F401

SHAPE = SHAPES["small"]


@pytest.fixture(scope="module", params=CLASSES)
def outputs(request):
    """Ours and transformers', with attentions and a field that is None."""
    ours, theirs = pair(SHAPE, request.param)
    tokens = draw_tokens(SHAPE, 2, 5)
    asked = {"output_attentions": True, "use_cache": False}
    with torch.no_grad():
        return ours(tokens, **asked), theirs(tokens, **asked)


def test_fields_are_those_of_transformers_in_every_way(outputs):
    ours, theirs = outputs
    assert isinstance(ours, dict)
    assert list(ours) == list(ours.keys()) == list(theirs)
    assert len(ours) == len(theirs)
    assert [type(value) for value in ours.values()] == [type(value) for value in theirs.values()]
    assert ours[0] is next(iter(ours.values()))
    assert ours[-1] is ours["attentions"] is ours.attentions
    assert len(ours[:2]) == 2 == len(theirs[:2])
    assert ours.past_key_values is None
    assert "past_key_values" not in ours
    with pytest.raises(KeyError):
        ours["past_key_values"]


@pytest.mark.parametrize(
    "rebuild",
    [
        lambda output: type(output)(dict(output.items())),
        lambda output: type(output)((name, value) for name, value in output.items()),
        lambda output: type(output)(**output),
        copy.copy,
        copy.deepcopy,
        lambda output: pickle.loads(pickle.dumps(output)),
    ],
    ids=["mapping", "pairs", "names", "copy", "deepcopy", "pickle"],
)
def test_it_can_be_made_anew(outputs, rebuild):
    """As accelerate, DataParallel and others do it."""
    output, _ = outputs
    found = rebuild(output)
    assert type(found) is type(output)
    assert list(found) == list(output)
    for name, value in output.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        assert getattr(found, name) is found[name]


def test_a_field_that_is_set_is_the_same_by_all_its_names(outputs):
    output = copy.copy(outputs[0])
    loss = torch.tensor(1.5)
    output["attentions"] = (loss,)
    assert output.attentions == (loss,) == output[-1]
    output.attentions = None
    assert "attentions" not in output
    with pytest.raises(TypeError, match="has no field 'lozz'"):
        type(output)(lozz=loss)


def test_outputs_are_nodes_of_pytrees(outputs):
    output, _ = outputs
    leaves, structure = pytree.tree_flatten(output)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    doubled = pytree.tree_map(lambda leaf: 2 * leaf, output)
    assert type(doubled) is type(output)
    torch.testing.assert_close(doubled[0], 2 * output[0])
    assert list(pytree.tree_unflatten(leaves, structure)) == list(output)


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_is_exported(name):
    model = pair(SHAPE, name, dtype=torch.float32)[0]
    tokens = draw_tokens(SHAPE, 2, 5)
    exported = torch.export.export(model, (tokens,), kwargs={"use_cache": False}).module()
    other = draw_tokens(SHAPE, 2, 5, seed=3)
    found, expected = exported(other, use_cache=False), model(other, use_cache=False)
    assert type(found) is type(expected)
    torch.testing.assert_close(found[0], expected[0])


def test_outputs_of_ones_own_have_the_fields_of_what_they_are_derived_from():
    class Scored(igpt_core.CausalOutput):
        score: float | None = None

    output = Scored(loss=1, score=2)
    assert output.to_tuple() == (1, 2)
    output.update(score=3, logits=4)
    assert (output.score, output["logits"]) == (3, 4)


def test_every_output_class_is_public():
    assert {cls.__name__ for cls in igpt_core.ModelOutput.__base__.__subclasses__()} <= set(
        igpt_core.__all__
    )
