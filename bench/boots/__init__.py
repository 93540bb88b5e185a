"""Boot the real vLLM once per configuration on a GPU host, load it, and record where its memory goes.

Run ``python -m bench.boots MATRIX.yaml --models DIR --out DIR`` on a host with vLLM. Weights are random: memory and
speed do not depend on their values, so a folder with ``config.json`` and a tokenizer is enough. A large card is held
down to the size of a smaller one by a process that keeps the rest of its memory, so that running out of memory happens
where it would on the small one.

It needs vLLM, PyTorch, PyYAML and nvidia-ml-py, and nothing of this project, so that the folder can be copied alone.
"""
