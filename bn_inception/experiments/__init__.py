"""The paper's experiments: which runs make each figure (`plans`), and running them (`execution`)."""
