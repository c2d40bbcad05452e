"""The paper's baselines: the same language model, with passages in the context (section 4).

RA-IT retrieves with a ready-made text retriever; RA-DIT fine-tunes that retriever first; RA-DIT-LM
makes a separate retriever of the language model's own layers 0..b. They share ImpRAG's data,
samplers, objectives, trainer and evaluation, and a recipe chooses one by its key ``system``.
"""
