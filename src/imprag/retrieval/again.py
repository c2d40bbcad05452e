"""What one answer retrieves, at its prompt and at later tokens, and what it reads of that."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from imprag.model.kv import PassageKV
from imprag.model.query import Queries
from imprag.model.schedule import MOST_RETRIEVALS, ContinuedPrompt, RetrievalSchedule
from imprag.retrieval.retriever import InPassRetriever, PromptBatch, RetrievedPassage, Retriever


@dataclass(frozen=True)
class Retrieval:
    """One retrieval of an answer.

    Attributes:
        tokens: the answer's tokens that were written before; 0 for the prompt's retrieval.
        passages: what was found, best first.
        written: the text of these tokens.
    """

    tokens: int
    passages: list[RetrievedPassage]
    written: str = ""


@dataclass(frozen=True)
class LaterSearch:
    """How answers retrieve again.

    Attributes:
        schedule: the tokens that retrieve, and what becomes of the former passages.
        retriever: finds the passages.
        k: number of passages of each retrieval.
        read: the passage KV of one prompt's passages, a batch of one.
        decode: the text of an answer's tokens.
    """

    schedule: RetrievalSchedule
    retriever: Retriever
    k: int
    read: Callable[[list[RetrievedPassage]], PassageKV]
    decode: Callable[[Sequence[int]], str]


class AnswerRetrievals:
    """The retrievals of one answer, and the passage KV that its next token reads.

    Every retrieval's passages take the same positions, from 0 on, so neither the prompt's nor the
    answer's positions move. A passage that is found again is read once, with its new score.

    Args:
        later: how it retrieves again, if it does.
        prompt: the prompt, marked for its template.
        found: what the prompt reads.

    Attributes:
        prompt: the prompt.
        retrievals: so far, the prompt's first.
    """

    def __init__(
        self, later: LaterSearch | None, prompt: str, found: list[RetrievedPassage]
    ) -> None:
        self.retrievals = [Retrieval(0, found)]
        self._later = later
        self.prompt = prompt
        self._parts: list[tuple[list[RetrievedPassage], PassageKV]] = []
        self._read = [found]  # from each retrieval on, in the order of the passage KV

    @property
    def passages(self) -> list[RetrievedPassage]:
        """The passages of all retrievals."""
        return all_read(self.retrievals)

    def last_part(self, answer: str) -> str:
        """What the last separator is followed by, if separators retrieve; all of it otherwise."""
        return answer if self._later is None else self._later.schedule.last_part(answer)

    def due(self, tokens: Sequence[int]) -> bool:
        """Whether the last of the answer's tokens retrieves."""
        later = self._later
        if later is None or len(self.retrievals) >= MOST_RETRIEVALS:
            return False
        return later.schedule.due(tokens, later.decode)

    def again(
        self, tokens: Sequence[int], input_ids: Tensor, queries: Queries, kv: PassageKV
    ) -> PassageKV:
        """Retrieve at the answer's last token.

        Args:
            tokens: the answer so far.
            input_ids: the prompt and the answer so far, (1, length).
            queries: the implicit query of the last token.
            kv: what the answer reads until now, a batch of one.

        Returns:
            what it reads from this token on, a batch of one.
        """
        later = self._later
        assert later is not None
        written = later.decode(tokens)
        text = ContinuedPrompt(self.prompt, written, tokens)
        found = search(later.retriever, PromptBatch([text], input_ids), queries, later.k)[0]
        if not self._parts:
            self._parts = [(self.retrievals[0].passages, kv)]
        self.retrievals.append(Retrieval(len(tokens), found, written.strip()))
        former = self._parts if later.schedule.kept == "beside" else []
        self._parts = [*_without(former, found), (found, later.read(found))]
        self._read.append([one for passages, _ in self._parts for one in passages])
        return PassageKV.beside([kv for _, kv in self._parts])

    def shares(self, passes: Sequence[Sequence[float]]) -> list[list[float]]:
        """The share of each of :attr:`passages` for each token; 0 if it was not read for it.

        Args:
            passes: of what each token's pass read, as `ReadingShares` sums it up.
        """
        if len(self.retrievals) == 1:
            return [list(given[: len(self.passages)]) for given in passes]
        places = {one.passage.id: n for n, one in enumerate(self.passages)}
        starts = [one.tokens for one in self.retrievals]
        shares = []
        for token, given in enumerate(passes):
            row = [0.0] * len(places)
            read = self._read[bisect_right(starts, token) - 1]
            for one, share in zip(read, given, strict=False):
                row[places[one.passage.id]] += share
            shares.append(row)
        return shares


def search(
    retriever: Retriever, prompts: PromptBatch, queries: Queries, k: int
) -> list[list[RetrievedPassage]]:
    """The k best passages for every prompt whose pass has reached layer b, by any retriever."""
    if isinstance(retriever, InPassRetriever):
        return retriever.search(prompts, queries, k)
    return retriever.retrieve(prompts.texts, k)


def all_read(retrievals: Sequence[Retrieval]) -> list[RetrievedPassage]:
    """The passages of all retrievals in order, each once, with the score that it was read with."""
    if len(retrievals) == 1:
        return list(retrievals[0].passages)
    return list({one.passage.id: one for found in retrievals for one in found.passages}.values())


def _without(
    parts: Sequence[tuple[list[RetrievedPassage], PassageKV]], found: Sequence[RetrievedPassage]
) -> list[tuple[list[RetrievedPassage], PassageKV]]:
    """The parts without passages that are found again."""
    again = {one.passage.id for one in found}
    left = []
    for passages, kv in parts:
        kept = [n for n, one in enumerate(passages) if one.passage.id not in again]
        if len(kept) < len(passages):
            passages, kv = [passages[n] for n in kept], kv.passages(0, kept)
        left.append((passages, kv))
    return left
