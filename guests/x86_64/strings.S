// Writes a string of bytes, of words and of double words to a port, and reads one from a port.
// Options: --debug-console port:0x10,as=numbers

// One instruction moves many items, and KVM may hand several of them over in one exit; each still
// reaches the device on its own. Wants five bytes of input at once.

.code16
.Lstrings:
    cld
    mov dx, 0x10
    mov si, offset .Lstrings_text
    mov cx, 8
    rep outsb
    mov si, offset .Lstrings_text
    mov cx, 4
    rep outsw
    mov si, offset .Lstrings_text
    mov cx, 2
    rep outsd

    mov dx, CONSOLE_LINE
.Lstrings_wait:
    in al, dx
    test al, DATA_READY
    jz .Lstrings_wait
    mov dx, CONSOLE
    mov di, offset .Lstrings_text
    mov cx, 5
    rep insb
    mov si, offset .Lstrings_text
    mov cx, 5
    rep outsb
    hlt

.Lstrings_data:
    .byte 1, 2, 3, 4, 5, 6, 7, 8
.set .Lstrings_text, LOAD_REAL + (.Lstrings_data - .Lstrings)
.code64
