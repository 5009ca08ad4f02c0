"""A sentence or two in languages that tokenizers of English cut into short pieces."""

from __future__ import annotations

LANGUAGES = {
    "english": (
        "Unworn goods may be sent back within forty-five days of delivery, and the refund is paid to the "
        "card that was used for the order. Return postage is free for members of the club; everybody else "
        "pays for it."
    ),
    "dutch": (
        "Ongedragen artikelen kunnen binnen vijfenveertig dagen na ontvangst worden teruggestuurd, waarna "
        "het aankoopbedrag wordt teruggestort op de gebruikte rekening. Verzendkosten worden uitsluitend "
        "vergoed bij onvol"
    ),
    "german": (
        "Ungetragene Ware kann innerhalb von fünfundvierzig Tagen nach der Lieferung zurückgeschickt werden; "
        "der Kaufpreis wird anschließend auf das Konto überwiesen. Versandkosten werden ausschließlich bei "
        "unvollständi"
    ),
    "polish": (
        "Nienoszone towary można odesłać w ciągu czterdziestu pięciu dni od dostawy, a zwrot pieniędzy "
        "następuje na kartę, którą opłacono zamówienie. Koszty przesyłki zwracamy wyłącznie przy "
        "niekompletnych zamówieniach."
    ),
    "finnish": (
        "Käyttämättömät tuotteet voi palauttaa neljänkymmenenviiden päivän kuluessa toimituksesta, ja "
        "ostohinta maksetaan takaisin tilaukseen käytetylle kortille. Toimituskulut korvataan ainoastaan "
        "puutteellisista tilau"
    ),
    "french": (
        "Les articles non portés peuvent être renvoyés dans les quarante-cinq jours suivant la livraison, et "
        "le remboursement est versé sur la carte utilisée pour la commande. Les frais de port ne sont "
        "remboursés que po"
    ),
    "spanish": (
        "Los artículos sin usar pueden devolverse en un plazo de cuarenta y cinco días desde la entrega, y "
        "el reembolso se abona en la tarjeta utilizada para el pedido. Los gastos de envío se reembolsan "
        "únicamente en pe"
    ),
    "italian": (
        "Gli articoli non indossati possono essere restituiti entro quarantacinque giorni dalla consegna, e "
        "il rimborso viene accreditato sulla carta utilizzata per l'ordine. Le spese di spedizione sono "
        "rimborsate solta"
    ),
    "turkish": (
        "Giyilmemiş ürünler teslimattan itibaren kırk beş gün içinde iade edilebilir ve ödeme, siparişte "
        "kullanılan karta geri yatırılır. Kargo ücretleri yalnızca eksik siparişlerde karşılanmaktadır."
    ),
    "indonesian": (
        "Barang yang belum dipakai dapat dikembalikan dalam waktu empat puluh lima hari setelah pengiriman, "
        "dan pengembalian dana dibayarkan ke kartu yang digunakan untuk pemesanan. Ongkos kirim hanya "
        "diganti untuk pesa"
    ),
    "swahili": (
        "Bidhaa ambazo hazijavaliwa zinaweza kurudishwa ndani ya siku arobaini na tano baada ya kupokelewa, "
        "na fedha zitarejeshwa kwenye kadi iliyotumika kulipia agizo. Gharama za usafirishaji hulipwa tu kwa "
        "maagizo yas"
    ),
    "welsh": (
        "Gellir dychwelyd nwyddau heb eu gwisgo o fewn pedwar deg pum diwrnod i'w derbyn, a thelir yr "
        "ad-daliad i'r cerdyn a ddefnyddiwyd ar gyfer yr archeb."
    ),
    "caps": (
        "UNWORN GOODS MAY BE SENT BACK WITHIN FORTY-FIVE DAYS OF DELIVERY, AND THE REFUND IS PAID TO THE "
        "CARD THAT WAS USED FOR THE ORDER."
    ),
}
