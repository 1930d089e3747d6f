"""What a run would take, from the model's configuration and a short measurement: bytes, memory, time."""
