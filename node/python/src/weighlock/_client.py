"""What this process says of itself to the daemon, which notes it in the host's audit log."""

import os
import sys

# Inference servers and trainers, the ones that stand on others first.
RUNTIMES = (
    "vllm",
    "sglang",
    "tensorrt_llm",
    "text_generation_server",
    "lmdeploy",
    "llama_cpp",
    "ctranslate2",
    "deepspeed",
    "transformers",
    "jax",
    "torch",
)
# Runtimes named at once, and characters in all.
RUNTIMES_MAX = 2
CHARS_MAX = 200


def client() -> str:
    """This client and the runtimes that are loaded, such as `weighlock-python 0.1.0 vllm 0.6.3`. The environment
    variable WEIGHLOCK_CLIENT names something else after the first word and version."""
    from . import __version__

    own = f"weighlock-python {__version__}"
    named = os.environ.get("WEIGHLOCK_CLIENT", "").strip()
    if named:
        return f"{own} {named}"[:CHARS_MAX]
    words = [own]
    # Only what is loaded already: nothing is imported for it.
    for name in RUNTIMES:
        module = sys.modules.get(name)
        if module is not None and len(words) <= RUNTIMES_MAX:
            version = getattr(module, "__version__", None)
            words.append(f"{name} {version}" if isinstance(version, str) else name)
    return " ".join(words)[:CHARS_MAX]
