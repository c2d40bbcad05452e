"""Settings of the HTTP server."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What the server is called, who may use it, and how much one request may ask for.

    Attributes:
        model: the model's name in the API.
        api_key: the key that requests must present; without one, anybody who reaches the server
            may use it.
        hosts: names that a request's ``Host`` header may have, which keeps web pages from reaching
            a local server under a name of their own; None allows any.
        max_body_bytes: greatest size of a request's body.
        body_seconds: seconds in which a request's body must arrive.
        max_prompt_characters: greatest length of a prompt, before it is split into tokens.
        max_tokens: greatest ``max_tokens`` of a completion.
        max_n: greatest number of answers to a prompt.
        max_prompts: greatest number of prompts of a completion, or of queries of a search.
        max_passages: greatest number of passages of a retrieval, or given; the keys and values of
            all of them are in memory until the answer ends. An answer that retrieves again reads up
            to 16 times as many.
        max_texts: greatest number of texts to embed or rank.
        min_confidence: least confidence of an answer, for requests that say nothing else; None
            computes none.
        waiting_calls: greatest number of embedding, rerank and search calls at the same time.
    """

    model: str = "default"
    api_key: str | None = None
    hosts: frozenset[str] | None = None
    min_confidence: float | None = None
    max_body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0
    max_prompt_characters: int = 200_000
    max_tokens: int = 1024
    max_n: int = 8
    max_prompts: int = 16
    max_passages: int = 100
    max_texts: int = 2048
    waiting_calls: int = 32
