// Greets the world and ends: the smallest guest that shows anything.
// Options:

// A real UART would have to be asked before each byte whether it has room; this one always has,
// and asking would cost an exit each.

.Lhello:
    mov x1, #CONSOLE
    adr x2, .Lhello_text
.Lhello_next:
    ldrb w3, [x2], #1
    cbz w3, .Lhello_end
    strb w3, [x1]
    b .Lhello_next
.Lhello_end:
    mov x1, #EXIT
    str wzr, [x1]

.Lhello_text:
    .asciz "Hello, world!\n"
