"""From prompts to answers: retrieval, reading and generation of a batch."""

from imprag.generation.answer import Answer, AnswerStream, Judge
from imprag.generation.batch import GenerationBatch
from imprag.generation.reading import later_search, passage_kv
from imprag.generation.settings import GenerationSettings
from imprag.generation.stops import begun_stop, until_stop

__all__ = [
    "Answer",
    "AnswerStream",
    "GenerationBatch",
    "GenerationSettings",
    "Judge",
    "begun_stop",
    "later_search",
    "passage_kv",
    "until_stop",
]
