"""jaxllm carries a language model through its whole life on TPUs, GPUs and CPUs."""
