"""Row "Fine-tuning": theta_init is fine-tuned as it is."""

from sdfp.methods.interface import Method

METHOD = Method()
