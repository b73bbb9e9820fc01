"""Trainer of transformers and adapters of peft, to which the models pass as transformers' own."""

import copy
import pickle
import threading

import pytest
import torch
import transformers

import igpt_core
from igpt_core.model.layers import Conv1D
from parity import (
    CAUSAL,
    CLASSES,
    CLASSIFIER,
    SHAPES,
    assert_equal_up_to_rounding,
    assert_same_gradients,
    draw_tokens,
    one_thread,  # noqa: F401
    pair,
)
from pictures import photo

accelerate = pytest.importorskip("accelerate")
peft = pytest.importorskip("peft")

SHAPE = SHAPES["small"]
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TOKENS = draw_tokens(SHAPE, 8, 16)


def rows_of(name):
    labels = [torch.tensor(row % 2) for row in range(8)] if name == CLASSIFIER else TOKENS
    return [{"input_ids": row, "labels": of} for row, of in zip(TOKENS, labels, strict=True)]


def trainer(model, folder, rows, **options):
    arguments = transformers.TrainingArguments(
        str(folder),
        **{"max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2},
        **{"per_device_train_batch_size": 4, "report_to": [], "use_cpu": True},
        **{"disable_tqdm": True, "seed": 3, **options},
    )
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


def losses(trained):
    return [line["loss"] for line in trained.state.log_history if "loss" in line]


@pytest.mark.parametrize("name", [CAUSAL, CLASSIFIER])
def test_a_trainer_trains_as_it_does_the_model_of_transformers(name, tmp_path):
    ours, theirs = pair(SHAPE, name, dtype=torch.float32, **NO_DROPOUT)
    mine, other = (
        trainer(model, tmp_path / str(number), rows_of(name))
        for number, model in enumerate((ours, theirs))
    )
    mine.train()
    other.train()
    assert len(losses(mine)) == 4
    assert losses(mine) == pytest.approx(losses(other), rel=1e-4)
    assert mine.evaluate()["eval_loss"] == pytest.approx(other.evaluate()["eval_loss"], rel=1e-3)
    assert mine.predict(rows_of(name)[:2])[0].shape == other.predict(rows_of(name)[:2])[0].shape


def test_its_checkpoints_are_model_folders(tmp_path):
    """They have config.json, and training goes on from them as if it had not been interrupted."""
    ours, _ = pair(SHAPE, dtype=torch.float32, **NO_DROPOUT)
    again = copy.deepcopy(ours)
    whole = trainer(ours, tmp_path / "whole", rows_of(CAUSAL))
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    loaded = type(ours).from_pretrained(checkpoint)
    assert loaded.config.with_fields(**ours.config.to_dict()) == loaded.config
    theirs = transformers.ImageGPTForCausalImageModeling.from_pretrained(checkpoint)
    torch.testing.assert_close(theirs(TOKENS).logits, loaded(TOKENS).logits)
    resumed = trainer(again, tmp_path / "resumed", rows_of(CAUSAL))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed) == losses(whole)
    for one, two in zip(again.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "option",
    [
        {"bf16": True},
        {"activation_checkpointing": True},
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    ],
)
def test_its_ways_to_save_memory_and_time(option, tmp_path):
    ours, _ = pair(SHAPE, dtype=torch.float32, **NO_DROPOUT)
    plain = trainer(copy.deepcopy(ours), tmp_path / "plain", rows_of(CAUSAL))
    plain.train()
    mine = trainer(ours, tmp_path / "run", rows_of(CAUSAL), **option)
    mine.train()
    assert losses(mine) == pytest.approx(losses(plain), rel=2e-2 if "bf16" in option else 1e-4)
    assert (tmp_path / "run" / "checkpoint-4" / "config.json").exists()


ADAPTERS = {
    "lora": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
        init_lora_weights=False,
    ),
    "all": lambda: peft.LoraConfig(target_modules="all-linear", init_lora_weights=False),
    "ia3": lambda: peft.IA3Config(
        target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]
    ),
    "virtual": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_of_peft(kind):
    """With the weights of the adapter on transformers' model they give its logits and gradients."""
    adapted = [peft.get_peft_model(model, ADAPTERS[kind]()).double() for model in pair(SHAPE)]
    mine, other = adapted
    other.load_state_dict(mine.state_dict())
    tokens = TOKENS[:, :10]
    for model in adapted:
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert sum(weight.requires_grad for weight in mine.parameters()) > 0
    assert_same_gradients(mine, other)
    mine.eval()
    other.eval()
    assert_equal_up_to_rounding(mine(input_ids=tokens).logits, other(input_ids=tokens).logits)
    options = {"input_ids": tokens[:, :3], "max_length": 10, "do_sample": False}
    if kind in ("virtual", "prefix"):
        with pytest.raises(TypeError, match=r"generate: expected no virtual tokens.*next: an adap"):
            mine.generate(**options)
        return
    assert torch.equal(mine.generate(**options), other.generate(**options)[:, :10])
    merged = mine.merge_and_unload()
    torch.testing.assert_close(merged(tokens).logits, other(input_ids=tokens).logits)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_added_to_the_model_itself():
    ours, theirs = pair(SHAPE)
    for model in (ours, theirs):
        torch.manual_seed(0)
        model.add_adapter(ADAPTERS["lora"]())
        model.double()
    assert_equal_up_to_rounding(ours(TOKENS).logits, theirs(TOKENS).logits)
    ours.disable_adapters()
    theirs.disable_adapters()
    assert_equal_up_to_rounding(ours(TOKENS).logits, theirs(TOKENS).logits)


@pytest.mark.parametrize("name", CLASSES)
def test_models_pass_as_those_of_transformers(name):
    model, _ = pair(SHAPE, name)
    assert isinstance(model, transformers.PreTrainedModel)
    assert type(model) is getattr(igpt_core, name)
    assert model.__class__.__name__ == name
    assert not isinstance(model, transformers.ImageGPTPreTrainedModel)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert type(other) is type(model)
        assert torch.equal(other(TOKENS)[0], model(TOKENS)[0])
    with pytest.raises(AttributeError, match=f"'{name}' object has no attribute 'wpte'"):
        model.wpte  # noqa: B018


def test_projections_pass_as_those_of_transformers():
    """peft asks whether a module is a Conv1D of transformers, whose layout this has."""
    model, _ = pair(SHAPE)
    theirs = transformers.pytorch_utils.Conv1D
    for module in (model.transformer.h[0].attn.c_attn, model.transformer.h[0].mlp.c_proj):
        assert isinstance(module, theirs)
        assert isinstance(module, Conv1D)
        assert type(module) is Conv1D
    assert module.nf == 48
    plain = model(TOKENS).logits
    torch.nn.utils.parametrize.register_parametrization(module, "weight", torch.nn.Identity())
    assert torch.equal(model(TOKENS).logits, plain)
    torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
    assert type(module) is Conv1D


def test_a_class_as_an_object_has_it_makes_what_its_type_does(tmp_path):
    """Where transformers is loaded that class is derived from one of there."""
    model, _ = pair(SHAPE)
    model.save_pretrained(tmp_path)
    for made in (model.__class__(model.config), model.__class__.from_pretrained(tmp_path)):
        assert type(made) is type(model)
        assert made(TOKENS).logits.shape == (8, 16, 16)


@pytest.mark.parametrize("name", CLASSES)
def test_the_results_of_pipelines_are_those_of_transformers(name):
    ours, theirs = pair(SHAPE, name, dtype=torch.float32)
    task = "image-classification" if name == CLASSIFIER else "image-feature-extraction"
    clusters = torch.linspace(-1, 1, 48).reshape(16, 3).numpy()
    processor = igpt_core.ImageGPTImageProcessor(clusters, size={"height": 4, "width": 4})
    image = photo(3)
    mine, other = (
        transformers.pipeline(task, model=model, image_processor=processor)(image)
        for model in (ours, theirs)
    )
    if name == CLASSIFIER:
        mine, other = ([[each["score"] for each in found]] for found in (mine, other))
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(other), rtol=1e-4, atol=1e-4)


def test_a_model_prepared_for_mixed_precision_generates():
    """accelerate puts autocast into the forward pass itself."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # of Trainers before
    model, _ = pair(SHAPE, dtype=torch.float32)
    expected = model.generate(TOKENS[:, :3], return_dict_in_generate=True, output_scores=True)
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare(copy.deepcopy(model))
    found = prepared.generate(TOKENS[:, :3], return_dict_in_generate=True, output_scores=True)
    torch.testing.assert_close(found.scores[0], expected.scores[0], rtol=0.1, atol=0.1)
    assert found.sequences.shape == expected.sequences.shape


def test_outputs_pass_as_those_of_transformers():
    model, _ = pair(SHAPE)
    with torch.no_grad():
        output = model(TOKENS, use_cache=False)
    assert isinstance(output, transformers.utils.ModelOutput)
    for other in (pickle.loads(pickle.dumps(output)), copy.copy(output), copy.deepcopy(output)):
        assert type(other) is igpt_core.CausalOutput
        assert other.logits.equal(output.logits)


def test_models_are_made_of_configurations_of_transformers():
    _, theirs = pair(SHAPE)
    made = igpt_core.ImageGPTForCausalImageModeling(theirs.config)
    assert isinstance(made.config, igpt_core.ImageGPTConfig)
    made.double().eval().load_state_dict(theirs.state_dict())
    assert_equal_up_to_rounding(made(TOKENS).logits, theirs(TOKENS).logits)


def test_objects_that_say_what_is_copied_of_them_are_copied():
    class Locked(igpt_core.ImageGPTModel):
        def __init__(self, config):
            super().__init__(config)
            self.lock = threading.Lock()

        def __getstate__(self):
            return {name: value for name, value in vars(self).items() if name != "lock"}

    model = Locked(igpt_core.ImageGPTConfig(**SHAPE)).eval()
    assert torch.equal(copy.deepcopy(model)(TOKENS)[0], model(TOKENS)[0])


def test_a_class_that_others_cannot_be_derived_from_is_itself():
    class Tagged(igpt_core.ImageGPTModel):
        def __init_subclass__(cls, *, tag):
            """Asks for a tag."""

    model = Tagged(igpt_core.ImageGPTConfig(**SHAPE)).eval()
    assert not isinstance(model, transformers.PreTrainedModel)
    assert model(TOKENS)[0].shape == (8, 16, 48)


def test_what_is_none_there_is_none():
    model, theirs = pair(SHAPE)
    for name in ("_tp_plan", "_keep_in_fp32_modules", "_keys_to_ignore_on_load_missing"):
        assert getattr(model, name) == getattr(type(theirs), name)
    with pytest.raises(TypeError, match="has no field 'sub_configs'"):
        model.config.with_fields(sub_configs={})


@pytest.mark.parametrize("name", igpt_core._THEIRS)
def test_what_is_no_part_of_this_is_imported_from_transformers(name):
    assert hasattr(transformers, name)
    with pytest.raises(ImportError, match=f"next: from transformers import {name}"):
        getattr(igpt_core, name)
