"""How an answer's next token is chosen."""

from collections.abc import Callable, Sequence

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

_COLDEST = 1e-5  # logits divided by less may overflow, and sampling is greedy long before


class Sampler:
    """Chooses the tokens of one answer; no other answer changes what it draws.

    Args:
        sampling: temperature, top_p and seed.
        choice: the answer's number among those of its request.
        config: the model's generation settings, whose penalties apply.
        ends: the tokens that end an answer.
    """

    def __init__(
        self, sampling: Sampling, choice: int, config: GenerationConfig, ends: Sequence[int]
    ) -> None:
        self.penalties = _penalties(config)
        self.ends = list(ends)
        self.greedy = sampling.temperature < _COLDEST
        if self.greedy:
            return
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            # A seed's answers differ from each other, and from those of the next seed.
            self.generator.manual_seed(hash((sampling.seed, choice)) % 2**63)

    def choose(
        self, tokens: Sequence[int], logits: Tensor, *, may_end: bool
    ) -> tuple[int, Callable[[], float]]:
        """The next token, and what computes the logarithm of its probability.

        The probability is that before temperature and top_p, as for `imprag.pipeline`.

        Args:
            tokens: the prompt's and the answer's so far.
            logits: (vocabulary,).
            may_end: whether an end token may be chosen.
        """
        scores = logits.float()[None]
        if not may_end:
            ends = torch.tensor(self.ends, dtype=torch.long, device=scores.device)
            scores = scores.index_fill(1, ends, -torch.inf)
        scores = _processed(self.penalties, tokens, scores)
        if self.greedy:
            token = int(scores.argmax())
        else:
            probabilities = _processed(self.warpers, tokens, scores).softmax(-1).cpu()
            token = int(torch.multinomial(probabilities[0], 1, generator=self.generator))
        return token, lambda: float(scores[0].log_softmax(-1)[token])


def _processed(processors: LogitsProcessorList, tokens: Sequence[int], scores: Tensor) -> Tensor:
    """The scores after the processors, which see the tokens so far, if there are any."""
    if not processors:
        return scores
    processed: Tensor = processors(torch.tensor([tokens], device=scores.device), scores)
    return processed


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
