"""The losses of training: held against their definition, head by head."""

import json
from pathlib import Path

import pytest
import torch

from igpt_core.errors import CheckpointError
from igpt_core.heads import ImageGPTForCausalImageModeling, load_model
from igpt_core.learning.objectives import JointClassification, NextPixel
from igpt_core.learning.scoring import token_nll
from igpt_core.model.checkpoint import save_checkpoint
from igpt_core.model.config import ImageGPTConfig

N = 16
NAMES = ["cat", "dog", "frog"]
SHAPE = {"vocab_size": 9, "n_positions": N, "n_embd": 16, "n_layer": 2, "n_head": 2}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A causal model with weights large enough that every token matters."""
    torch.manual_seed(0)
    model = ImageGPTForCausalImageModeling(
        ImageGPTConfig(**SHAPE, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    folder = tmp_path_factory.mktemp("models") / "pretrained"
    save_checkpoint(model, folder)
    return folder


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 8, (5, N), generator=generator)
    return tokens, torch.tensor([0, 2, 1, 2, 0])


def joint(folder: Path, weight: float) -> JointClassification:
    torch.manual_seed(2)
    return JointClassification.from_pretrained(folder, class_names=NAMES, next_pixel_weight=weight)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_joint_loss_is_its_definition(pretrained, weight):
    """From the causal model's own logits, one image at a time, softmax by hand in float64."""
    objective = joint(pretrained, weight)
    causal = load_model(pretrained, device="cpu", dtype=torch.float32)
    tokens, labels = batch()
    classes, nats = [], []
    with torch.no_grad():
        found = objective(tokens, labels).item()
        for image, label in zip(tokens, labels, strict=True):
            hidden = causal.transformer(image[None]).last_hidden_state[0].double()
            logits = objective.model.score.weight.double() @ hidden.mean(dim=0)
            classes.append(-logits.softmax(dim=0)[label].log())
            chances = (hidden @ causal.lm_head.weight.double().t()).softmax(dim=1)
            nats += [-chances[i, image[i + 1]].log() for i in range(N - 1)]
    expected = torch.stack(classes).mean() + weight * torch.stack(nats).mean()
    # float32 logits of order 1 to 10, rounded a few hundred times by 6e-8 of that
    assert found == pytest.approx(expected.item(), abs=1e-4)


def test_gradients_flow_to_both_heads_and_through_the_whole_transformer(pretrained):
    objective = joint(pretrained, 1.0)
    objective(*batch()).backward()
    without = {name for name, p in objective.named_parameters() if p.grad is None}
    assert not without
    norms = {name: p.grad.norm().item() for name, p in objective.named_parameters()}
    for name in ("model.score.weight", "lm_head.weight", "model.transformer.wte.weight"):
        assert norms[name] > 1e-3, name


def test_both_losses_pull_at_the_transformer(pretrained):
    """The gradient of the sum is the sum of the gradients, and neither is nothing."""
    grads = []
    for weight in (0.0, 1.0, 2.0):
        objective = joint(pretrained, weight)
        objective(*batch()).backward()
        grads.append(objective.model.transformer.h[0].attn.c_attn.weight.grad)
    pixels = grads[1] - grads[0]
    assert grads[0].norm() > 1e-3
    assert pixels.norm() > 1e-3
    assert torch.allclose(grads[2], grads[0] + 2 * pixels, atol=1e-5)


def test_what_is_kept_is_the_classifier_alone(pretrained, tmp_path):
    objective = joint(pretrained, 1.0)
    objective.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["ImageGPTForImageClassification"]
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "frog"}
    assert config["label2id"] == {"cat": 0, "dog": 1, "frog": 2}
    names = load_model(
        tmp_path, device="cpu", dtype=torch.float32, head="classification"
    ).state_dict()
    assert {name.split(".")[0] for name in names} == {"transformer", "score"}


def test_a_classifier_can_be_tuned_further_without_the_next_pixel(pretrained, tmp_path):
    joint(pretrained, 1.0).model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lm_head"):
        joint(tmp_path, 1.0)
    assert joint(tmp_path, 0.0)(*batch()).item() > 0


def test_a_weight_and_no_head_contradict_each_other(pretrained):
    whole = joint(pretrained, 1.0)
    for head, weight in ((None, 1.0), (whole.lm_head, 0.0)):
        with pytest.raises(ValueError, match="needs its head"):
            JointClassification(whole.model, head, next_pixel_weight=weight)


def test_next_pixel_is_the_mean_likelihood(pretrained):
    model = load_model(pretrained, device="cpu", dtype=torch.float32)
    tokens, _ = batch()
    assert torch.equal(NextPixel(model)(tokens), token_nll(model, tokens).mean())
