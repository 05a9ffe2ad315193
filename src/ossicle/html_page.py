"""What a page that stands alone is made of: a template that escapes all it is given, and sound within the page."""

import base64
import io

import jinja2
import numpy as np
import soundfile

from ossicle.audio.waveform import SAMPLE_RATE


def load_templates(package: str) -> jinja2.Environment:
    """The templates in a package's folder `templates`; a name that a template does not know is an error, not a gap."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def encode_wav(samples: np.ndarray) -> bytes:
    """Samples at 16 kHz as a wav file, 16 bits a sample."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1.0, 1.0), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def encode_data_uri(mime_type: str, encoded: bytes) -> str:
    """A file as an address that holds it."""
    return f"data:{mime_type};base64,{base64.b64encode(encoded).decode('ascii')}"
