"""The two ways a command may end early that are nobody's bug: wrong input, and a request to stop."""


class UserError(Exception):
    """The user's input, options or machine make the request impossible. Exit code 2.

    The message is one clear sentence: what is wrong, where, and what to do about it.
    """


class Interrupted(Exception):  # noqa: N818  (it is no error)
    """The user (or the system) asked a long job to stop; its state is saved and it can be resumed. Exit code 130."""
