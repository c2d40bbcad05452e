"""An adapter whose framework is missing says what to install."""

import importlib
import sys

import pytest

from imprag.errors import ImpRAGError

ADAPTERS = {
    "mteb_model": ("mteb", "the MTEB model needs"),
    "langchain": ("langchain_core", "the LangChain retriever needs langchain-core"),
    "llama_index": ("llama_index.core", "the LlamaIndex retriever needs llama-index.core"),
    "haystack": ("haystack", "the Haystack component needs haystack"),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_missing_framework_is_named(adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, message = ADAPTERS[adapter]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"imprag.integrations.{adapter}", raising=False)
    with pytest.raises(ImpRAGError, match=rf'{message}.*; run: pip install "imprag\[integr'):
        importlib.import_module(f"imprag.integrations.{adapter}")
