// Prints 100 KiB byte by byte, and a last word: then it stays, with nothing left to do.
// Options: --expect done

// Nothing but writes to one port: no exit need be made for each.

.set BURST_LINES, 1600
.set BURST_FIRST, 0x30              // a line has the characters from '0' on, and ends with the 64th

.code16
.Lburst:
    mov dx, CONSOLE
    mov bx, BURST_LINES
    cld                             // upwards
.Lburst_line:
    mov al, BURST_FIRST
.Lburst_next:
    out dx, al
    inc al
    cmp al, BURST_FIRST + 63
    jne .Lburst_next
    mov al, 10
    out dx, al
    dec bx
    jnz .Lburst_line

    mov si, offset .Lburst_text
    mov cx, offset .Lburst_len
    rep outsb
.Lburst_stay:
    jmp .Lburst_stay

.Lburst_message:
    .ascii "done"
.set .Lburst_text, LOAD_REAL + (.Lburst_message - .Lburst)
.set .Lburst_len, . - .Lburst_message
.code64
