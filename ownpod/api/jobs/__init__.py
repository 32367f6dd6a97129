"""The job API of RunPod's clients: submit, wait, stream, cancel."""
