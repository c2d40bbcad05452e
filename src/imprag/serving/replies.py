"""Bodies of responses, in the form of OpenAI's API, with ImpRAG's additions under ``imprag``."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from imprag.serving.requests import FinishReason


class ErrorDetail(BaseModel):
    """What went wrong, in one sentence."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """Every response with a status of 400 and above."""

    error: ErrorDetail


class InputUsage(BaseModel):
    """Numbers of tokens of a request that generates none."""

    prompt_tokens: int
    total_tokens: int


class Usage(InputUsage):
    """Numbers of tokens of a request and its answers."""

    completion_tokens: int


class UrlCitation(BaseModel):
    """A passage that the text from ``start_index`` to ``end_index`` was made from."""

    url: str
    title: str
    start_index: int
    end_index: int


class Annotation(BaseModel):
    """A citation in OpenAI's form."""

    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation


class ReadPassage(BaseModel):
    """A passage that a prompt read; ``prompt`` is the prompt's number in the request."""

    prompt: int
    id: str
    title: str
    text: str
    url: str
    score: float
    kind: str


class LaterRetrieval(BaseModel):
    """What a later token of an answer retrieved, after ``written`` had been written."""

    prompt: int
    choice: int
    tokens: int
    written: str
    passages: list[ReadPassage]


class TokenShares(BaseModel):
    """What was read for the token at ``start`` to ``end`` of the answer."""

    text: str
    start: int
    end: int
    shares: list[float]


class AnswerShares(BaseModel):
    """What the answer with a number was read from.

    Passages are in the order of first reading: those of its prompt in ``passages``, then what its
    ``retrievals`` add.
    """

    index: int
    shares: Annotated[list[float], Field(description="Of the attention, for each passage.")]
    own: Annotated[float, Field(description="The share of the prompt's and answer's own tokens.")]
    carried_by: Annotated[
        list[int],
        Field(description="The passages that got at least half of what all passages got."),
    ]
    tokens: list[TokenShares]


class AnswerConfidence(BaseModel):
    """How likely the answer with a number is right; ``abstained`` if it was withheld."""

    index: int
    confidence: float
    evidence: dict[str, float]
    abstained: bool


class Details(BaseModel):
    """What the answer was made from, and how long it took."""

    passages: list[ReadPassage]
    retrievals: Annotated[
        list[LaterRetrieval], Field(description="What later tokens of the answers retrieved.")
    ]
    model_prompts: Annotated[list[str], Field(description="Each prompt as the model read it.")]
    timings: Annotated[list[dict[str, float]], Field(description="Seconds, for each prompt.")]
    attributions: Annotated[list[AnswerShares], Field(description="For each answer, if asked for.")]
    confidences: Annotated[
        list[AnswerConfidence], Field(description="For each answer, if asked for.")
    ]
    notes: Annotated[list[str], Field(description="What of the request was not used.")]


class Answer(BaseModel):
    """An answer of the assistant."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    annotations: list[Annotation]


class ChatChoice(BaseModel):
    """One answer to a conversation."""

    index: int
    message: Answer
    logprobs: None = None
    finish_reason: FinishReason


class CompletionChoice(BaseModel):
    """One continuation of a prompt."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: FinishReason


class _Completed(BaseModel):
    id: str
    created: int
    model: str
    usage: Usage
    imprag: Details


class ChatCompletion(_Completed):
    """The response of ``POST /v1/chat/completions`` without ``stream``."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Completion(_Completed):
    """The response of ``POST /v1/completions`` without ``stream``."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class Embedding(BaseModel):
    """The embedding of one text; base64 holds float32 numbers, lowest byte first."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    """The response of ``POST /v1/embeddings``."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: InputUsage


class RankedDocument(BaseModel):
    """A document and its score for the query: the higher, the better."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class Ranking(BaseModel):
    """The response of ``POST /rerank``: documents, best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: InputUsage


class VectorStore(BaseModel):
    """The loaded index."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    name: str
    created_at: int
    status: Literal["completed"] = "completed"
    usage_bytes: int
    file_counts: dict[str, int]
    metadata: dict[str, str]


class VectorStores(BaseModel):
    """The response of ``GET /v1/vector_stores``."""

    object: Literal["list"] = "list"
    data: list[VectorStore]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


class FoundText(BaseModel):
    """The text of a found passage."""

    type: Literal["text"] = "text"
    text: str


class FoundPassage(BaseModel):
    """A found passage; its id and title are OpenAI's ``file_id`` and ``filename``."""

    file_id: str
    filename: str
    score: float
    attributes: dict[str, str | float | bool]
    content: list[FoundText]


class SearchResults(BaseModel):
    """The response of ``POST /v1/vector_stores/{id}/search``."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[FoundPassage]
    has_more: bool = False
    next_page: None = None


class Model(BaseModel):
    """The loaded model, and what it retrieves from."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["imprag"] = "imprag"
    imprag: dict[str, Any]


class Models(BaseModel):
    """The response of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """The response of ``GET /health``."""

    status: Literal["ok"] = "ok"
    running: int
    waiting: int
