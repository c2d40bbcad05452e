"""How an answer's next token is chosen."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from imprag.serving.requests import Sampling


class Sampler:
    """Chooses the tokens of one answer; no other answer changes what it draws.

    Args:
        sampling: temperature, top_p and seed.
        choice: the answer's number among those of its request.
        config: the model's generation settings, whose penalties apply.
    """

    def __init__(self, sampling: Sampling, choice: int, config: GenerationConfig) -> None:
        self.processors = _penalties(config)
        self.greedy = sampling.temperature == 0
        if self.greedy:
            return
        self.processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            self.processors.append(TopPLogitsWarper(sampling.top_p))
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            # A seed's answers differ from each other, and from those of the next seed.
            self.generator.manual_seed(hash((sampling.seed, choice)) % 2**63)

    def choose(self, tokens: Sequence[int], logits: Tensor) -> int:
        """The next token.

        Args:
            tokens: the prompt's and the answer's so far.
            logits: (vocabulary,).
        """
        scores = logits.float()[None]
        if self.processors:
            scores = self.processors(torch.tensor([tokens], device=logits.device), scores)
        if self.greedy:
            return int(scores.argmax())
        probabilities = scores.softmax(-1).cpu()
        return int(torch.multinomial(probabilities[0], 1, generator=self.generator))


def _penalties(config: GenerationConfig) -> LogitsProcessorList:
    """The settings of a model's files that apply to greedy search, too."""
    penalties = LogitsProcessorList()
    if (penalty := config.repetition_penalty) not in (None, 1.0):
        penalties.append(RepetitionPenaltyLogitsProcessor(penalty))
    if size := config.no_repeat_ngram_size:
        penalties.append(NoRepeatNGramLogitsProcessor(size))
    if suppressed := config.suppress_tokens:
        penalties.append(SuppressTokensLogitsProcessor(suppressed))
    return penalties
