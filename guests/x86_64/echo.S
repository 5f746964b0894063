// Sends back what it receives, until the input ends.
// Options:

// The receiver of a 16550 has two registers to watch: a bit in the line status says that a byte
// waits, and reading the data register takes it.

.code16
.Lecho:
    mov dx, CONSOLE_LINE
.Lecho_wait:
    in al, dx
    test al, DATA_READY
    jz .Lecho_wait
    mov dx, CONSOLE
    in al, dx
    cmp al, END_OF_INPUT
    je .Lecho_end
    out dx, al
    jmp .Lecho
.Lecho_end:
    xor eax, eax
    out EXIT, eax
.code64
