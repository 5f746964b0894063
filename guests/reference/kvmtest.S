// LWN's kvmtest: real mode in one page at 0x1000, adds rax and rbx and prints the digit.
// Options: --ram 0x1000:4K --load 0x1000 --reg rax=2 --reg rbx=2

.code16
    mov dx, CONSOLE
    add al, bl
    add al, '0'
    out dx, al
    mov al, '\n'
    out dx, al
    hlt
.code64
