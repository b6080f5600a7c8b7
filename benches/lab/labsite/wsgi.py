"""The WSGI entry, for gunicorn. The addresses are loaded with it, not by the first call of each worker."""

from djangoapp.wsgi import application  # noqa: F401
import labsite.urls  # noqa: F401
