"""Adapters that let other frameworks retrieve with ImpRAG; each is a module of its own.

- :mod:`imprag.integrations.mteb_model`: models that ``mteb.evaluate`` runs;
- :mod:`imprag.integrations.langchain`, :mod:`imprag.integrations.llama_index` and
  :mod:`imprag.integrations.haystack`: retrievers.

``pip install "imprag[integrations]"`` installs all four frameworks.
"""
