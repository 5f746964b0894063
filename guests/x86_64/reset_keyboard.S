// Asks for a reset, through the keyboard controller, the oldest way on a PC.
// Options:

.code16
.Lreset_keyboard:
    in al, KEYBOARD
    test al, KEYBOARD_FULL
    jnz .Lreset_keyboard
    mov al, KEYBOARD_RESET
    out KEYBOARD, al
    hlt                             // not reached
.code64
