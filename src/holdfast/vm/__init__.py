"""One owner task per VM: admission, lifecycle, guest agent."""
