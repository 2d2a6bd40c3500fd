"""Errors in OpenAI's form, which clients of that API read."""

from __future__ import annotations

import json

INVALID, AUTHENTICATION, UPSTREAM, SERVER = (
    "invalid_request_error",
    "authentication_error",
    "upstream_error",
    "server_error",
)


class ApiError(Exception):
    """Error that a client is answered with.

    Attributes:
        status: of HTTP.
        message: for a person; holds no key and no text of a prompt.
        kind: OpenAI's ``type``.
        code: for a program.
        param: field of the request that is wrong.
        retry_after: seconds after which the same request may be answered.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.code, self.param, self.retry_after = code, param, retry_after

    def content(self) -> bytes:
        """JSON of the error."""
        fields = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": fields}, ensure_ascii=False).encode("utf-8", "replace")

    def event(self) -> bytes:
        """Event of a stream that has begun: clients raise it as they raise an answer with an error."""
        return b"data: " + self.content() + b"\n\n"
