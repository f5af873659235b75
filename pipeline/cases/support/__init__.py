"""Customer support: chats, e-mails and call transcripts are answered on the topic of their channel."""
