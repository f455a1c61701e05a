"""What is not the object: the command line, `check` and `repair`. They look at state files from the outside.

| file              | what                                                                       |
|-------------------|----------------------------------------------------------------------------|
| `spots.py`        | the place in a text at which something is wrong, and what stands around it |
| `layout.py`       | where colons are missing, or the indentation is wrong                      |
| `mistakes.py`     | what is wrong there, in the words of a person who writes YAML              |
| `notes.py`        | what is YAML, but hardly what was meant                                    |
| `messages.py`     | what a person is told when something is wrong, and the exit codes          |
| `paths.py`        | PATH, such as `jobs[3].name`: reading, writing, finding what it means      |
| `values.py`       | VALUE, and values as JSON                                                  |
| `excerpts.py`     | the present text of a state, or of a part of it                            |
| `differences.py`  | what differs between two states, what a record changes, how it is printed  |
| `following.py`    | following a state that a script changes; `log`                             |
| `screen.py`       | `watch`: what it draws on a terminal                                       |
| `repair.py`       | `check` and `repair`: what is wrong with a file, and what is left of it    |
| `demo.py`         | the demo                                                                   |
| `changes.py`      | what an operation does to a node, and where that is                        |
| `kinds.py`        | the types that a class may declare, and what is in them                    |
| `declared.py`     | what the annotations of a class declare, checked by msgspec                |
| `watching.py`     | `_watch`: noticing what others do to a state while nobody touches it       |
| `beside.py`       | vacuums of a state that an event loop uses, by a thread beside it          |
| `tasks.py`        | transactions of tasks: `async with` waits, and the event loop goes on      |
| `commands.py`     | the other commands: one function for each                                  |
| `renewal.py`      | putting a text in the place of that of a state                             |
| `editing.py`      | `edit`: a state in an editor                                               |
| `copying.py`      | `copy`: a state from a file or server to another                           |
| `command_line.py` | the table of commands, their arguments, help, and how a command runs       |
| `completion.py`   | what a shell completes at TAB                                              |

Each file uses only those above it; `wheel/` has what only the wheel has. They use names of the module that begin with
an underscore: both are of one version.
"""

import persistedstate

_VERSION = "27.0"
if persistedstate.__version__ != _VERSION:
    raise ImportError(f"persistedstate_tools {_VERSION} cannot look into persistedstate {persistedstate.__version__}")
