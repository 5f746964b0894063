// LWN's kvmtest with a greeting: the same sum, then a line of text.
// Options: --ram 0x1000:4K --load 0x1000 --reg rax=2 --reg rbx=2

.code16
.Lkvmtest_greeting:
    mov dx, CONSOLE
    add al, bl
    add al, '0'
    out dx, al
    mov si, offset .Lkvmtest_greeting_text
.Lkvmtest_greeting_next:
    lodsb
    test al, al
    jz .Lkvmtest_greeting_end
    out dx, al
    jmp .Lkvmtest_greeting_next
.Lkvmtest_greeting_end:
    hlt
.Lkvmtest_greeting_message:
    .asciz "\nHello\n"
.set .Lkvmtest_greeting_text, LOAD_REAL + (.Lkvmtest_greeting_message - .Lkvmtest_greeting)
.code64
