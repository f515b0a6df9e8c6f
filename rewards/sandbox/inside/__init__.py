"""What runs inside the sandbox. Each module stands alone: the standard library and its neighbours, never `rewards`."""
