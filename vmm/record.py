"""Frozen records with the notation of :mod:`dataclasses`, without importing it.

Importing :mod:`dataclasses` (which brings ``inspect``, ``re``, ``enum``, ``ast``) costs more than a whole run of the
command.  A type checker sees the real thing; at run time the decorator below makes what this package uses of it: a
frozen, slotted class with ``__init__``, ``__eq__``, ``__hash__``, ``__repr__`` and pickling.  The result still *is* a
dataclass for callers: ``dataclasses.fields``, ``asdict`` and ``replace`` work on it, because ``__dataclass_fields__``
is made when somebody asks.

The same reason holds for every module on the path of a plain run: names that only annotations need are imported under
``if TYPE_CHECKING:``, where ``TYPE_CHECKING = False`` is a constant of the module, known to type checkers by its name.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:
    _MISSING = object()

    class _Default:
        """What :func:`field` answers: a factory, or a plain default."""

        __slots__ = ("factory", "value")

        def __init__(self, value, factory):
            self.value = value
            self.factory = factory

    def field(*, default=_MISSING, default_factory=_MISSING):
        """A default for a field; ``default_factory`` is called for each new record."""
        return _Default(default, default_factory)

    class _DataclassFields:
        """``__dataclass_fields__``, made when it is asked for."""

        def __get__(self, instance, owner):
            import dataclasses

            fields = []
            for name, annotation, default in owner.__record_fields__:
                if default is _MISSING:
                    fields.append((name, annotation))
                elif default.factory is not _MISSING:
                    fields.append((name, annotation, dataclasses.field(default_factory=default.factory)))
                else:
                    fields.append((name, annotation, dataclasses.field(default=default.value)))
            made = dataclasses.make_dataclass(owner.__name__, fields)
            return made.__dataclass_fields__

    def _make_init(fields):
        """``__init__`` for the fields, written out so that it costs what a hand-written one does."""
        names = {"_put": object.__setattr__, "_missing": _MISSING}
        parameters = []
        lines = []
        for name, _, default in fields:
            value = name
            if default is _MISSING:
                parameters.append(name)
            elif default.factory is not _MISSING:
                names[f"_factory_{name}"] = default.factory
                parameters.append(f"{name}=_missing")
                value = f"_factory_{name}() if {name} is _missing else {name}"
            else:
                names[f"_default_{name}"] = default.value
                parameters.append(f"{name}=_default_{name}")
            lines.append(f"    _put(self, {name!r}, {value})")
        source = f"def __init__(self, {', '.join(parameters)}):\n" + ("\n".join(lines) or "    pass")
        exec(source, names)
        return names["__init__"]

    class _Record:
        """What every record shares."""

        __slots__ = ()
        __dataclass_fields__ = _DataclassFields()

        def __eq__(self, other):
            if type(other) is not type(self):
                return NotImplemented
            return all(getattr(self, name) == getattr(other, name) for name in self.__match_args__)

        def __hash__(self):
            return hash((type(self), *(getattr(self, name) for name in self.__match_args__)))

        def __repr__(self):
            parts = (f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
            return f"{type(self).__qualname__}({', '.join(parts)})"

        def __setattr__(self, name, value):
            raise AttributeError(f"{type(self).__name__} is frozen: cannot assign to {name}")

        def __delattr__(self, name):
            raise AttributeError(f"{type(self).__name__} is frozen: cannot delete {name}")

        def __reduce__(self):
            return (type(self), tuple(getattr(self, name) for name in self.__match_args__))

        def __replace__(self, /, **changes):
            return replace(self, **changes)

    def dataclass(*, frozen, slots):
        """A frozen, slotted record; both arguments must be true, they are there for the type checker."""
        if not (frozen and slots):
            raise TypeError("vmm.record makes frozen, slotted classes only")

        def decorate(cls):
            body = dict(cls.__dict__)
            fields = [entry for base in cls.__bases__ for entry in getattr(base, "__record_fields__", ())]
            own = []
            for name, annotation in cls.__annotations__.items():
                if str(annotation).startswith("ClassVar"):
                    continue
                default = body.pop(name, _MISSING)
                if default is not _MISSING and not isinstance(default, _Default):
                    default = _Default(default, _MISSING)
                own.append((name, annotation, default))
            fields += own
            for name in ("__dict__", "__weakref__"):
                body.pop(name, None)
            body["__slots__"] = tuple(name for name, _, _ in own)
            body["__match_args__"] = tuple(name for name, _, _ in fields)
            body["__record_fields__"] = tuple(fields)
            bases = tuple(base for base in cls.__bases__ if base is not object)
            if not any(issubclass(base, _Record) for base in bases):
                bases = (*bases, _Record)
            made = type(cls)(cls.__name__, bases, body)

            def first(self, *values, **named):
                # Compiled when the first record is made: most classes of a module are not used in a run.
                made.__init__ = _make_init(fields)
                made.__init__(self, *values, **named)

            made.__init__ = first
            return made

        return decorate

    def replace(record, /, **changes):
        """A copy of a record with some fields changed."""
        values = {name: getattr(record, name) for name in record.__match_args__}
        return type(record)(**(values | changes))
