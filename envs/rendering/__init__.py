"""Pictures and videos of states. ``render`` is the host side; ``worker`` is the child process with
the OpenGL context. What a scene looks like is declared by each task's ``Env.scene``."""
