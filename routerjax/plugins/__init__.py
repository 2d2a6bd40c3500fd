"""Plug-ins: routers as other packages ask for them. Each module needs the package that it is named after."""
