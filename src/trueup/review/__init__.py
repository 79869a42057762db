"""The page on which people compare answers: blind, by keyboard, several people a task.

    people.py     who may log in, passwords, sessions
    desk.py       who gets which task next, votes, undo
    agreement.py  do they agree, with each other and with what is known
    card.py       one task as it is shown: order, words that differ, texts made safe
    app.py        the pages;  guard.py what stands in front of every one of them

What people answer is labels; everything else the page knows is in tables of its own.
"""
