"""What loading and computing take on a device: link, processor, memory."""
