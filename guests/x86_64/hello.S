// Greets the world and ends: the smallest guest that shows anything.
// Options:

// A PC starts in real mode: 16-bit code, and here every segment has base 0. `rep outsb` sends the
// bytes one after the other. A real UART would have to be asked before each one whether it has
// room; this one always has, and asking would cost an exit each.

.code16
.Lhello:
    mov si, offset .Lhello_text
    mov cx, offset .Lhello_len
    mov dx, CONSOLE
    cld                             // upwards
    rep outsb
    xor eax, eax
    out EXIT, eax                   // the end, with status 0

.Lhello_message:
    .ascii "Hello, world!\n"
.set .Lhello_text, LOAD_REAL + (.Lhello_message - .Lhello)
.set .Lhello_len, . - .Lhello_message
.code64
