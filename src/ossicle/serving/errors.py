"""What a client is told when its request is not answered: OpenAI's error object with the status that fits."""

from typing import Any

from ossicle.errors import AudioError, OssicleError, RequestError

INVALID, OVERLOADED, SERVER = "invalid_request_error", "rate_limit_error", "server_error"
"""The `type` of an error: the client's mistake, too much at once, something of this server's or behind it."""


class ApiError(RequestError):
    """A request that is answered with an error; the message says what was given, what was expected and what to do."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """An error of the protocol.

        Args:
            status: of HTTP
            kind: `type` in the error object
            param: the field that is at fault, such as "messages[0].content"
            code: a word for programs, such as "queue_full"
            retry_after_s: when it is worth trying again
        """
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def to_api_error(error: OssicleError) -> ApiError:
    """What a client is told of an error that came up while its request was read or answered."""
    if isinstance(error, ApiError):
        return error
    code = "invalid_audio" if isinstance(error, AudioError) else None
    return ApiError(str(error), param="messages", code=code)
