from .page import serve as serve
