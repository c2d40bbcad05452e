"""Bodies of requests, in the form of OpenAI's API; unknown fields and other types are refused."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema


class Body(BaseModel):
    """A strict object: no conversion between types, no unknown field, no infinite number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _without_effect(value: Any) -> Any:
    """Refuse a value of an option of OpenAI's models that this server does not have."""
    if value:
        raise ValueError("has no counterpart here: leave it out")
    return value


def _texts_only(content: Any) -> Any:
    """Refuse parts of a message that are no text, such as images."""
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"has a part of type {kind!r}, but only text is read: leave it out")
    return content


#: Optional fields of OpenAI's API that clients send with their neutral value.
Neutral = Annotated[
    bool | int | float | list[Any] | None,
    AfterValidator(_without_effect),
    WithJsonSchema({"enum": [None, False, 0, []], "description": "Only for compatibility."}),
]
Text = Annotated[str, Field(min_length=1)]
Ignored = Annotated[Any, Field(description="Accepted for compatibility with clients; ignored.")]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Stop = Annotated[
    StopText | Annotated[list[StopText], Field(max_length=4)] | None,
    Field(
        description="Strings that end an answer and are not part of it. A line end if not given; "
        "with an empty list only the end token does."
    ),
]


class RetrievalChoice(Body):
    """How the passages are found."""

    retrieval: Annotated[
        Text | None,
        Field(description="`implicit`, `hybrid`, `lexical` or another retriever of the server."),
    ] = None
    lexical_weight: Annotated[
        float | None, Field(ge=0, description="For hybrid retrieval: the weight of the words.")
    ] = None


class ImpRAGOptions(RetrievalChoice):
    """ImpRAG's own options of a completion."""

    k: Annotated[
        int | None,
        Field(ge=0, description="Passages to read; the model's number if not given, 0 for none."),
    ] = None
    retrieve: Annotated[
        Text | None,
        Field(
            description="When an answer retrieves: `once`, `every:N` tokens or `on:SEPARATOR`. The "
            "model's own setting if not given."
        ),
    ] = None
    passages_kept: Annotated[
        Literal["beside", "instead"] | None,
        Field(
            description="Whether later passages are read beside the former ones or instead of "
            "them. The model's own setting if not given."
        ),
    ] = None
    min_tokens: Annotated[
        int | None, Field(ge=0, description="Before so many tokens, no answer ends by itself.")
    ] = None
    attribution: Annotated[
        bool | None,
        Field(description="Say how much each passage was read, and cite those that were."),
    ] = None
    min_confidence: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Say how likely the answer is right, and answer `not found in the corpus` "
            "where that is less; the server's own if not given.",
        ),
    ] = None


class Document(Body):
    """A passage that the caller brings."""

    title: str = ""
    text: Text


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class Generation(Body):
    """What chat and plain completions have in common."""

    model: Text | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[
        float | None, Field(ge=0, le=2, description="0, the default, takes the best token.")
    ] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    n: Annotated[int | None, Field(ge=1)] = None
    stop: Stop = None
    documents: Annotated[
        list[Document] | None, Field(description="Read these passages; retrieve none.")
    ] = None
    imprag: ImpRAGOptions | None = None
    frequency_penalty: Neutral = None
    presence_penalty: Neutral = None
    logprobs: Neutral = None
    user: str | None = None


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A message of a conversation; answers of this server may be sent back as they came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[TextPart], BeforeValidator(_texts_only)]
    name: str | None = None
    annotations: Ignored = None
    refusal: Neutral = None
    audio: Neutral = None
    function_call: Neutral = None
    tool_calls: Neutral = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ResponseFormat(Body):
    """The form of the answer: text."""

    type: Literal["text"]


class ChatRequest(Generation):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    response_format: ResponseFormat | None = None
    top_logprobs: Neutral = None
    tools: Neutral = None


class CompletionRequest(Generation):
    """``POST /v1/completions``."""

    prompt: Text | Annotated[list[Text], Field(min_length=1)]
    best_of: Annotated[int | None, Field(ge=1, le=1)] = None
    echo: Neutral = None

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


Token = Annotated[int, Field(ge=0)]
Tokens = Annotated[list[Token], Field(min_length=1)]


class EmbeddingRequest(Body):
    """``POST /v1/embeddings``."""

    input: Annotated[
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1)],
        Field(description="A text, a list of texts, or tokens of this model in their place."),
    ]
    model: Text | None = None
    encoding_format: Literal["float", "base64"] | None = None
    input_type: Annotated[
        Literal["query", "passage"] | None,
        Field(description="A passage, the default, or a query, which is what a prompt becomes."),
    ] = None
    dimensions: Annotated[int | None, Field(description="Only the model's own.")] = None
    user: str | None = None


class RerankRequest(Body):
    """``POST /rerank``, in the form of Cohere's and Jina's services."""

    query: Text
    documents: Annotated[list[Text | Document], Field(min_length=1)]
    model: Text | None = None
    top_n: Annotated[int | None, Field(ge=1)] = None
    return_documents: bool | None = None

    @property
    def passages(self) -> list[Document]:
        """The documents, each with a title."""
        return [Document(text=one) if isinstance(one, str) else one for one in self.documents]


class SearchRequest(Body):
    """``POST /v1/vector_stores/{id}/search``."""

    query: Text | Annotated[list[Text], Field(min_length=1)]
    max_num_results: Annotated[int | None, Field(ge=1, le=50)] = None
    filters: Annotated[None, Field(description="Not supported: only null.")] = None
    ranking_options: Annotated[None, Field(description="Not supported: only null.")] = None
    rewrite_query: Neutral = None
    imprag: RetrievalChoice | None = None

    @property
    def queries(self) -> list[str]:
        """The queries as a list."""
        return [self.query] if isinstance(self.query, str) else self.query
