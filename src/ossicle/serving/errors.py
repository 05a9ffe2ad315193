"""The errors of the HTTP API: OpenAI's error object, and the status that belongs to it."""

from typing import Any

from ossicle.errors import AudioError, ContextLengthError, OssicleError, RequestError

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
INVALID_REQUEST, RATE_LIMIT, SERVER_ERROR = "invalid_request_error", "rate_limit_error", "server_error"
"""The `type` of an error: the request is wrong, too much is waiting, or this server or vLLM failed."""


class ApiError(RequestError):
    """An error that a client gets; the message says what was given, what was expected and what to do."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        error_type: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """Creates an error of the HTTP API.

        Args:
            status: HTTP status
            error_type: `type` of the error object
            param: the field that is wrong, such as "messages[0].content"
            code: a word for programs, such as "queue_full"
            retry_after_s: seconds after which the client should try again
        """
        super().__init__(message)
        self.status, self.error_type, self.param, self.code = status, error_type, param, code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        error = {"message": str(self), "type": self.error_type, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """The response headers that the error adds."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def to_api_error(error: OssicleError) -> ApiError:
    """Returns the API error for an error that was raised while a request was read or answered."""
    if isinstance(error, ApiError):
        return error
    code = "invalid_audio" if isinstance(error, AudioError) else None
    if isinstance(error, ContextLengthError):
        code = CONTEXT_LENGTH_EXCEEDED
    return ApiError(str(error), param="messages", code=code)


def build_internal_error() -> ApiError:
    """Returns the error for a bug of this server: it tells the client nothing about the cause."""
    return ApiError("the server failed; its log has the reason", status=500, error_type=SERVER_ERROR)
