"""The ASGI entry, for uvicorn. The addresses are loaded with it, not by the first call of each process."""

from djangoapp.asgi import application  # noqa: F401
import labsite.urls  # noqa: F401
