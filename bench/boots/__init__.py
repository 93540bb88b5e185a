"""Boot the real vLLM once per configuration on a GPU host, put it under load, and record its memory use.

Run ``python -m bench.boots MATRIX.yaml --models DIR --out DIR`` on a host with vLLM. Weights are random, because memory
and speed do not depend on their values: a folder with ``config.json`` and a tokenizer is enough. To emulate a smaller
card, a process (the ballast) holds the rest of a larger card's memory. vLLM then runs out of memory at the same point.

Needs vLLM, PyTorch, PyYAML and nvidia-ml-py, but no other part of this project, so the folder can be copied alone.
"""
