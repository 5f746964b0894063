// Writes and reads ports by 1, 2 and 4 bytes.
// Options: --debug-console port:0x10,as=numbers

// Every write shows as a number. What is read, where there is nothing, is all ones, and a narrow
// read leaves the rest of the register alone.

.code16
.Lports:
    mov eax, 0x44332211
    out 0x10, al
    out 0x10, ax
    out 0x10, eax

    xor eax, eax
    in al, 0x20
    out 0x10, eax
    xor eax, eax
    in ax, 0x20
    out 0x10, eax
    xor eax, eax
    in eax, 0x20
    out 0x10, eax
    hlt
.code64
