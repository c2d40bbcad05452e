"""Models that cannot be cut into layer groups are refused with the reason; the others work."""

import threading
from types import MethodType

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from conftest import tiny_lm
from imprag.errors import ImpRAGError
from imprag.model.config import ImpRAGConfig
from imprag.model.generate import fixed
from imprag.model.inputs import pad
from imprag.model.model import ImpRAGModel

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MLA = {
    "head_dim": ..., "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
}  # fmt: skip


def lm_of(family: str, **more: object) -> PreTrainedModel:
    settings = {name: x for name, x in {**SIZES, **more}.items() if x is not ...}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def config_of(**settings: object) -> ImpRAGConfig:
    values = {"base_model": "my-model", "b": 1, "t": 4, "k": 1, "max_passage_tokens": 32}
    return ImpRAGConfig(**{**values, **settings})


def tokens(model: ImpRAGModel) -> tuple[list[int], int]:
    """An answer, and how often the model retrieved for it."""
    prefix = model.encode_passages([[[9, 8, 7, 6]]])
    asked: list[Tensor] = []
    ids, mask = pad([[1, 20, 21]], CPU)
    output = model.generate(
        ids,
        mask,
        lambda queries: asked.append(queries) or prefix,
        position_shift=32,
        max_new_tokens=5,
        do_sample=False,
        eos_token_id=None,
    )
    return output[0].tolist(), len(asked)


@pytest.mark.parametrize("part", ["the model", "its decoder"])
@pytest.mark.parametrize("later", [False, True])
def test_a_model_whose_forward_was_replaced_is_refused(part: str, later: bool) -> None:
    lm = tiny_lm()
    model = ImpRAGModel(lm, config_of()) if later else None
    add_hook_to_module(lm if part == "the model" else lm.base_model, ModelHook())
    with pytest.raises(ImpRAGError, match="forward method .* was replaced"):
        tokens(model or ImpRAGModel(lm, config_of()))


def test_hooks_on_layers_change_nothing() -> None:
    lm = tiny_lm()
    model = ImpRAGModel(lm, config_of())
    expected = tokens(model)
    for layer in lm.base_model.layers:
        add_hook_to_module(layer, ModelHook())
        add_hook_to_module(layer.self_attn, ModelHook())
    assert tokens(model) == expected
    assert expected[1] == 1


def without_the_interface(
    self: nn.Module, hidden_states: Tensor, **call: object
) -> tuple[Tensor, None]:
    """A layer's attention as libraries patch it: it knows nothing of registered functions."""
    heads = [
        project(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        for project in (self.q_proj, self.k_proj, self.v_proj)
    ]
    seen = nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    return self.o_proj(seen.transpose(1, 2).flatten(2)), None


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("where", ["the layer's own", "its class's"])
def test_patched_attention_never_answers_as_if_there_were_no_passages(
    layer: int, where: str
) -> None:
    lm = tiny_lm()
    attention = lm.base_model.layers[layer].self_attn
    if where == "its class's":
        # A class of its own for this layer, which leaves the others as they are.
        patched = type("PatchedAttention", (type(attention),), {"forward": without_the_interface})
        attention.__class__ = patched
        refusal = "LlamaDecoderLayer of this model does not call transformers' attention"
    else:
        attention.forward = MethodType(without_the_interface, attention)
        refusal = "forward method of this LlamaAttention was replaced"
    with pytest.raises(ImpRAGError, match=refusal):
        tokens(ImpRAGModel(lm, config_of()))


def test_what_wraps_a_model_is_named() -> None:
    with pytest.raises(ImpRAGError, match="not PeftModel: give the model inside it, merged"):
        ImpRAGModel(get_peft_model(tiny_lm(), LoraConfig(target_modules=["q_proj"])), config_of())
    with pytest.raises(ImpRAGError, match="not DataParallel"):
        ImpRAGModel(nn.DataParallel(tiny_lm()), config_of())


def test_a_compiled_model_answers_as_the_plain_one() -> None:
    expected = tokens(ImpRAGModel(tiny_lm(), config_of()))
    assert tokens(ImpRAGModel(torch.compile(tiny_lm(), backend="eager"), config_of())) == expected
    lm = tiny_lm()
    lm.compile(backend="eager")
    assert tokens(ImpRAGModel(lm, config_of())) == expected
    lm = tiny_lm()
    lm.forward = torch.compile(lm.forward, backend="eager")
    with pytest.raises(ImpRAGError, match="torch.compile"):
        ImpRAGModel(lm, config_of())
    lm = tiny_lm()
    lm.base_model.layers[2].compile(backend="eager")
    with pytest.raises(ImpRAGError, match="compiled one by one"):
        ImpRAGModel(lm, config_of())


def test_offloaded_weights_are_refused() -> None:
    lm = tiny_lm()
    lm.base_model.layers[5].to("meta")
    with pytest.raises(ImpRAGError, match="spread over cpu, meta"):
        ImpRAGModel(lm, config_of())


@pytest.mark.parametrize(
    ("family", "more", "b", "reason"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"] * 3, "head_dim": ...}, 1, "conv"),
        ("lfm2", {"layer_types": ["full_attention", "conv"] * 3, "head_dim": ...}, 2, "conv"),
        ("minimax", {}, 1, "linear_attention"),
        ("deepseek_v3", {**MLA, "n_routed_experts": 4, "num_mtp_layers": 0}, 1, "latent attention"),
        ("minicpm3", MLA, 1, "latent attention"),
        ("gpt2", {}, 1, "no rotary position"),
    ],
)
def test_families_of_other_layers_are_refused(
    family: str, more: dict[str, object], b: int, reason: str
) -> None:
    lm = lm_of(family, **more)
    with pytest.raises(ImpRAGError, match=f"{family}.*{reason}"):
        ImpRAGModel(lm, config_of(b=b))


def test_a_model_of_several_streams_is_refused() -> None:
    lm = lm_of(
        "gemma3n_text",
        vocab_size_per_layer_input=97,
        hidden_size_per_layer_input=16,
        num_kv_shared_layers=0,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 6,
        sliding_window=512,
    )
    with pytest.raises(ImpRAGError, match="gemma3n_text"):
        ImpRAGModel(lm, config_of())


def test_a_multimodal_model_is_refused_as_such() -> None:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "image_size": 28}
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**SIZES, "sliding_window": 512},
        vision_config={**vision, "num_attention_heads": 2, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    lm = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ImpRAGError, match=r"gemma3\) is a multimodal model"):
        ImpRAGModel(lm, config_of())


def test_an_attention_window_shorter_than_passages_is_refused() -> None:
    lm = lm_of("cohere2", sliding_window=16)
    with pytest.raises(ImpRAGError, match="sliding window of 16 tokens"):
        ImpRAGModel(lm, config_of())


ROPES = {
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [8.0] * 4,
        "original_max_position_embeddings": 200,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}


def model_with(rope: str) -> ImpRAGModel:
    more = {"longrope": {"original_max_position_embeddings": 200}, "dynamic": {}}[rope]
    longest = {"longrope": 8192, "dynamic": 200}[rope]
    family = {"longrope": "phi3", "dynamic": "llama"}[rope]
    settings = {"rope_parameters": ROPES[rope], "max_position_embeddings": longest, **more}
    lm = lm_of(family, head_dim=8, **settings)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return ImpRAGModel(lm, config_of(max_passage_tokens=64))


@torch.no_grad()
def last_logits(model: ImpRAGModel, rows: list[list[int]]) -> Tensor:
    ids, mask = pad(rows, CPU, left=True)
    prefix = model.encode_passages([[[20, 21, 22]]] * len(rows))
    return model(ids, mask, fixed(prefix), position_shift=64).logits[0, -1]


@pytest.mark.parametrize("rope", sorted(ROPES))
def test_answers_do_not_depend_on_the_longest_prompt_of_a_batch(rope: str) -> None:
    model = model_with(rope)
    short, long, too_long = list(range(5, 15)), list(range(3, 93)), [5] * 140
    expected = last_logits(model, [short])
    torch.testing.assert_close(last_logits(model, [short, long]), expected, atol=1e-5, rtol=0)
    with torch.no_grad():  # turns the frequencies of the model itself
        model.lm(torch.tensor([[7] * 250]), use_cache=False)
    torch.testing.assert_close(last_logits(model, [short]), expected, atol=1e-5, rtol=0)
    with pytest.raises(ImpRAGError, match="position 203 is reached, but from 200 on"):
        last_logits(model, [short, too_long])
    assert model.positions_limit == 200
    with pytest.raises(ImpRAGError, match="leave out compile_decoding"):
        model.compile_decoding()


@pytest.mark.parametrize("rope", sorted(ROPES))
def test_a_prompt_asks_the_same_wherever_it_stands(rope: str) -> None:
    model = model_with(rope)
    ids, mask = pad([list(range(5, 60))], CPU, left=True)
    with torch.no_grad():
        prefix = model.encode_passages([[]])
        asked = model(ids, mask, fixed(prefix), position_shift=128).query_embeddings
        torch.testing.assert_close(asked, model.query_embeddings(ids, mask), atol=1e-5, rtol=1e-4)


def test_queries_that_are_scaled_by_their_positions_are_refused_from_there_on() -> None:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 256,
        "llama_4_scaling_beta": 0.1,
    }
    lm = lm_of("ministral3", rope_parameters=rope, max_position_embeddings=512)
    assert ImpRAGModel(lm, config_of()).positions_limit == 256


def test_threads_that_share_a_model_do_not_disturb_each_other() -> None:
    model = model_with("longrope")
    short = list(range(5, 15))
    expected = last_logits(model, [short])
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            with torch.no_grad():
                model.lm(torch.tensor([[7] * 250]), use_cache=False)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(10):
            torch.testing.assert_close(last_logits(model, [short]), expected, atol=1e-5, rtol=0)
    finally:
        stop.set()
        thread.join()
